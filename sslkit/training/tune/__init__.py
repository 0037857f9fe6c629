"""Choose the fastest execution of the network on this machine, by timing a few real training steps of each candidate.

`tune` decides; `choose` is a pure function of timings, which `trials.py` measures and `timings.py` caches on disk.
`compiled_views.py` decides whether to compile the augmentation on a GPU.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sslkit.machine import distributed
from sslkit.machine.devices import release
from sslkit.training.execution import Execution, usual
from sslkit.training.tune import trials
from sslkit.training.tune.candidates import compiled_candidates, eager_candidates
from sslkit.training.tune.compiled_views import decide_compiled_views
from sslkit.training.tune.timings import MARGIN, Timing, TuningRecord, recalled, remember

if TYPE_CHECKING:
    from sslkit.training.setup import TrainingSetup

FEWEST_STEPS = 500
"""Steps of the shortest run that is tuned: a shorter one would lose more time by tuning than it could gain."""
ALWAYS_STEPS = 100_000
"""Minimum number of steps that `tune=always` optimises for, so that the time of the first step is negligible."""
COMPILING_PAYS = 600.0
"""Expected seconds of a run beyond which compilation, which takes about a minute, is tried."""
COARSER_MARGIN = 0.9
"""`MARGIN` for a candidate of lower precision than the default execution, which must be clearly faster."""
AGREEMENT = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 2e-2}
"""Maximum relative difference of the first loss from that of the default execution, by precision."""


def tune(setup: "TrainingSetup", log: Callable[[str], None]) -> Execution:
    """Return the fastest execution for the number of steps of the run, among those that the settings leave open.

    Candidates are timed on copies of the method and its optimizer; `setup` is unchanged, random state included.
    Timings are cached by machine, network, image size and batch size, so that a second run makes the same choice.
    With several processes, each times every candidate on its own; the slowest process counts, and a candidate that
    fails in one process is rejected.
    """
    steps = _steps_to_judge_by(setup)
    if setup.device.type not in ("cpu", "cuda") or steps < FEWEST_STEPS:
        result: Execution = distributed.from_main(usual(setup.config, setup.device))
        return result
    known = recalled(setup)
    candidate, timings = _fastest(setup, known.timings, steps, log)
    views_compiled, faster = decide_compiled_views(setup, steps, known.compiled_views, log)
    if distributed.is_main() and TuningRecord(timings, faster) != known:
        remember(setup, TuningRecord(timings, faster), log)
    return replace(
        candidate,
        compiled_views=views_compiled,
        compile="default" if setup.config.compile is True else candidate.compile,
    )


def _steps_to_judge_by(setup: "TrainingSetup") -> int:
    """Return the number of steps to optimise for; 0 if tuning is off."""
    return {"off": 0, "auto": setup.steps, "always": max(setup.steps, ALWAYS_STEPS)}[setup.config.tune]


def _fastest(
    setup: "TrainingSetup", timings: dict[Execution, Timing], steps: int, log: Callable[[str], None]
) -> tuple[Execution, dict[Execution, Timing]]:
    """Return the fastest candidate, and `timings` together with those that had to be measured."""
    config, device = setup.config, setup.device
    # Processes may have different GPUs; all of them use the candidates of the first one.
    eager = distributed.from_main(eager_candidates(config, device, setup.method))
    if len(eager) == 1 and not compiled_candidates(config, device, eager[0]):
        return eager[0], timings
    if not timings.keys() >= set(eager):
        timings = timings | trials.measure(setup, eager, log)
    best = choose([timings[candidate] for candidate in eager], steps)
    compiled = compiled_candidates(config, device, best)
    expected = min(timings[best].total(steps), config.budget or math.inf)
    tried = expected > COMPILING_PAYS and not timings.keys() >= set(compiled)
    if tried:
        timings = _rescaled(timings, best, trials.measure(setup, [best, *compiled], log))
    open_candidates = [timings[candidate] for candidate in [*eager, *compiled] if candidate in timings]
    chosen = choose(open_candidates, steps)
    if tried and chosen.compile != "graphs":
        # Recorded CUDA graphs would keep the memory of a step for the rest of the process.
        _forget_compiled(device)
    for line in in_words(open_candidates, chosen, config.batch_size * config.accumulate):
        log(line)
    return chosen, timings


def _rescaled(
    known: dict[Execution, Timing], best: Execution, fresh: dict[Execution, Timing]
) -> dict[Execution, Timing]:
    """Return `known` timings, and `fresh` ones scaled to the speed that the machine had when `best` was first timed.

    The speed of machines drifts; known timings are kept, because a second run must choose the same best candidate.
    """
    drift = known[best].step / fresh[best].step if known[best].step and fresh[best].step else 1.0
    return {candidate: replace(timing, step=timing.step * drift) for candidate, timing in fresh.items()} | known


def _forget_compiled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.compiler.reset()
        release(device)


def choose(timings: list[Timing], steps: int) -> Execution:
    """Return the execution that takes the least time for `steps` steps.

    The first of the list, the default execution, is chosen unless another one is faster by a margin. Candidates are
    rejected if they failed, or if their first loss deviates from the expected one by more than their precision
    explains. If the default execution failed, any other one is preferred to it.
    """
    default = timings[0]
    eligible = [t for t in timings[1:] if not t.error and _agrees(t, default) and _beats(t, default, steps)]
    return min(eligible, key=lambda t: t.total(steps), default=default).execution


def _beats(timing: Timing, default: Timing, steps: int) -> bool:
    coarser = default.execution.precision == "fp32" != timing.execution.precision
    if default.error:
        return True
    return timing.total(steps) < (COARSER_MARGIN if coarser else MARGIN) * default.total(steps)


def _agrees(timing: Timing, default: Timing) -> bool:
    tolerance = max(AGREEMENT[t.execution.precision] for t in (timing, default))
    return abs(timing.loss - timing.expected) <= tolerance * max(1.0, abs(timing.expected))


def in_words(timings: list[Timing], chosen: Execution, images: int) -> Iterator[str]:
    """Yield the lines of a table with one candidate per line; `images` is the number per optimizer step."""
    yield "tuned by timing a few real steps of each candidate (tune=off disables this):"
    for timing in timings:
        mark = "  <- chosen" if timing.execution == chosen else ""
        yield f"  {timing.execution!s:<42} {_figures(timing, timings[0], images)}{mark}"


def _figures(timing: Timing, default: Timing, images: int) -> str:
    if timing.error:
        return f"not possible here: {timing.error}"
    compiling = f", {timing.first:.0f} s to compile" if timing.execution.compile != "no" else ""
    differs = "" if _agrees(timing, default) else f", but its loss is {timing.loss:.4g}, not {timing.expected:.4g}"
    return f"{timing.step * 1e3:7.1f} ms/step, {images / timing.step:6.0f} images/s{compiling}{differs}"
