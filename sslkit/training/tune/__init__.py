"""Choose the fastest execution of the network on this machine: a few real steps of each are timed, and remembered.

`tune` decides; `choose` is a pure function of timings, which `trials.py` makes and `timings.py` remembers. A GPU's
views are decided on by `compiled_views.py`.
"""

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
"""A shorter run would lose more by trying than it could gain."""
ALWAYS_STEPS = 100_000
"""`tune=always` judges by so many steps, beside which the first one is of no account."""
COMPILING_PAYS = 600.0
"""Seconds that a run must still take before compiling, which costs a minute or so, is tried."""
COARSER_MARGIN = 0.9
"""MARGIN for a candidate with fewer digits than the usual one: those want a reason."""
AGREEMENT = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 2e-2}
"""How far the first loss may lie from the usual candidate's, relatively, by precision."""


def tune(setup: "TrainingSetup", log: Callable[[str], None]) -> Execution:
    """Return the fastest execution for as many steps as the run has, of those that the settings leave open.

    Candidates are timed on copies of the method and its optimizer; `setup` stays as it is, random state
    included. Timings are remembered by machine, network, size and batch, so that a second run chooses the same.
    With several processes each of them times, by itself, what it can do in every candidate; the slowest one's times
    count, and what failed in one of them failed.
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
    """Steps that a candidate would be chosen for; 0 where none is to be tried."""
    return {"off": 0, "auto": setup.steps, "always": max(setup.steps, ALWAYS_STEPS)}[setup.config.tune]


def _fastest(
    setup: "TrainingSetup", timings: dict[Execution, Timing], steps: int, log: Callable[[str], None]
) -> tuple[Execution, dict[Execution, Timing]]:
    """The candidate, and `timings` with what had to be measured to know it."""
    config, device = setup.config, setup.device
    # Processes may have unlike cards: the first one's candidates are everyone's.
    eager = distributed.from_main(eager_candidates(config, device, setup.method))
    if len(eager) == 1 and not compiled_candidates(config, device, eager[0]):
        return eager[0], timings
    if not timings.keys() >= set(eager):
        timings = timings | trials.measure(setup, eager, log)
    best = choose([timings[candidate] for candidate in eager], steps)
    compiled = compiled_candidates(config, device, best)
    tried = timings[best].total(steps) > COMPILING_PAYS and not timings.keys() >= set(compiled)
    if tried:
        timings = _beside(timings, best, trials.measure(setup, [best, *compiled], log))
    open_candidates = [timings[candidate] for candidate in [*eager, *compiled] if candidate in timings]
    chosen = choose(open_candidates, steps)
    if tried and chosen.compile != "graphs":
        # Recorded graphs would hold a step's memory for the rest of the process.
        _forget_compiled(device)
    for line in in_words(open_candidates, chosen, config.batch_size * config.accumulate):
        log(line)
    return chosen, timings


def _beside(known: dict[Execution, Timing], best: Execution, fresh: dict[Execution, Timing]) -> dict[Execution, Timing]:
    """`known`, and `fresh` timings at the pace that the machine had when `best` was timed first.

    Machines drift; and what is known of the best stays, for a second run must come to the same best.
    """
    drift = known[best].step / fresh[best].step if known[best].step and fresh[best].step else 1.0
    return {candidate: replace(timing, step=timing.step * drift) for candidate, timing in fresh.items()} | known


def _forget_compiled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.compiler.reset()
        release(device)


def choose(timings: list[Timing], steps: int) -> Execution:
    """The candidate that is done first with `steps` steps; the first of the list, the usual one, unless beaten clearly.

    A candidate that failed, or whose first loss is not what it should be to its precision, is no choice. Where the
    usual one failed, any other beats it.
    """
    usual_timing = timings[0]
    fit = [t for t in timings[1:] if not t.error and _agrees(t, usual_timing) and _beats(t, usual_timing, steps)]
    return min(fit, key=lambda t: t.total(steps), default=usual_timing).execution


def _beats(timing: Timing, usual_timing: Timing, steps: int) -> bool:
    coarser = usual_timing.execution.precision == "fp32" != timing.execution.precision
    if usual_timing.error:
        return True
    return timing.total(steps) < (COARSER_MARGIN if coarser else MARGIN) * usual_timing.total(steps)


def _agrees(timing: Timing, usual_timing: Timing) -> bool:
    coarser = max(AGREEMENT[t.execution.precision] for t in (timing, usual_timing))
    return abs(timing.loss - timing.expected) <= coarser * max(1.0, abs(timing.expected))


def in_words(timings: list[Timing], chosen: Execution, images: int) -> Iterator[str]:
    """The table: a line a candidate; `images` is the number an optimizer step."""
    yield "tuned by a few real steps of each candidate (tune=off does without):"
    for timing in timings:
        mark = "  <- chosen" if timing.execution == chosen else ""
        yield f"  {timing.execution!s:<42} {_figures(timing, timings[0], images)}{mark}"


def _figures(timing: Timing, usual_timing: Timing, images: int) -> str:
    if timing.error:
        return f"not possible here: {timing.error}"
    compiling = f", {timing.first:.0f} s to compile" if timing.execution.compile != "no" else ""
    differs = "" if _agrees(timing, usual_timing) else f", but its loss is {timing.loss:.4g}, not {timing.expected:.4g}"
    return f"{timing.step * 1e3:7.1f} ms a step, {images / timing.step:6.0f} images/s{compiling}{differs}"
