"""Choose the number of epochs that fit a time budget, from the measured speed of the run."""

from collections.abc import Callable
from statistics import mean

from sslkit.config.layers import Layer, Mistakes
from sslkit.config.resolve import Resolved
from sslkit.errors import UserError
from sslkit.machine import distributed
from sslkit.machine.load import computing_threads
from sslkit.training.build import build
from sslkit.training.preflight import resolve_new_layers
from sslkit.training.timed_steps import endless_batches, timed_steps

SHARE = 0.95
"""Share of the budget that is planned for: speed varies, and the run shall end within its time."""
WARM_UP, MEASURED = 2.0, 4.0
"""Seconds of steps before the measurement, in which the number of threads settles, and during it."""
MOST_STEPS = 200
"""Largest number of steps that are taken in each of the two."""


def fit_budget(resolved: Resolved, log: Callable[[str], None]) -> Resolved:
    """Return the settings with the epochs that fit `budget`; unchanged if there is none.

    The run with these settings is the run that `epochs=` of the same number would give, to the bit. Settings that
    depend on the number of steps, such as a momentum, follow. Raises UserError if not even one epoch fits, or if there
    are several processes, which would measure different speeds.
    """
    budget = resolved.config.budget
    if budget is None:
        return resolved
    if distributed.world() > 1:
        raise UserError("budget: works with one process only; give the number of epochs")
    seconds = _seconds_per_epoch(resolved, log)
    epochs = int(budget * SHARE / seconds)
    if epochs < 1:
        raise UserError(
            f"budget={in_words(budget)}: one epoch takes about {in_words(seconds / SHARE)} here; give it that long, "
            "or lower data.image_size"
        )
    log(f"budget:   {epochs} epochs of {seconds:.3g} s fit into {in_words(budget)} of training, evaluations apart")
    # Without the budget, the run's config.yaml is a recipe that anyone can run again.
    layer = Layer(f"auto: fits into budget={in_words(budget)}", {"epochs": epochs, "budget": None})
    return resolve_new_layers([*resolved.layers, layer], Mistakes())


def in_words(seconds: float) -> str:
    """Return a duration as the setting `budget` takes it: 90s, 10m, 1.5h."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g}{unit}"
    return f"{seconds:.3g}s"


def _seconds_per_epoch(resolved: Resolved, log: Callable[[str], None]) -> float:
    setup = build(resolved.config, log)
    batches = endless_batches(setup)
    with computing_threads(resolved.config.threads, setup.device) as governor:
        for seconds in (WARM_UP, MEASURED):
            steps = []
            for step in timed_steps(setup, batches, MOST_STEPS, seconds):
                steps.append(step)
                governor.adjust()
    return mean(steps) * setup.steps_per_epoch
