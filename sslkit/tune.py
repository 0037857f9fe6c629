"""Which way of running the network is the fastest here: a few real steps of each are timed, and remembered.

`tune` at the top decides; `_measure` below it times what is not yet known; `choose` is a pure function of timings.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sslkit import atomic, distributed
from sslkit.augment.views import Views
from sslkit.data.loaders import RawBatch
from sslkit.data.source import cache_dir, digest
from sslkit.evaluators.cost import synchronize
from sslkit.execution import Execution, compiled_candidates, eager_candidates, usual
from sslkit.optim import make_optimizer
from sslkit.runs import processor
from sslkit.step import train_step

if TYPE_CHECKING:
    from sslkit.build import Parts

GREY_LEVEL = 1 / 255
"""How far a compiled view may lie from the plain one, where white is 1: what a uint8 image can show."""
FEWEST_STEPS = 500
"""A shorter run would lose more by trying than it could gain."""
TIMED_STEPS = 3
"""Steps of each way after the first, which warms up and is timed apart."""
LONG = 20.0
"""Seconds that the first steps of all ways may take together; where they take longer, one further step is timed."""
COMPILING_PAYS = 600.0
"""Seconds that a run must still take before compiling, which costs a minute or so, is tried."""
MARGIN = 0.97
"""A way must take less than this share of the usual one's time: timings of a few steps are noisy."""
COARSER_MARGIN = 0.9
"""The same for a way with fewer digits than the usual one: those want a reason."""
AGREEMENT = {"fp32": 2e-3, "bf16": 5e-2, "fp16": 2e-2}
"""How far the first loss may lie from the usual way's, relatively, by precision."""


@dataclass(frozen=True)
class Timing:
    """What was found out about one way."""

    execution: Execution
    first: float = 0.0
    """Seconds of the first step, compiling included."""
    step: float = 0.0
    """Median seconds of a further step."""
    loss: float = 0.0
    """Loss of the first step, of the same weights and views for every way timed with it."""
    expected: float = 0.0
    """That of the first way timed with it: a later run, of another seed, may have timed the others."""
    error: str = ""
    """Why it cannot be used here."""

    def total(self, steps: int) -> float:
        """Expected seconds of a run of `steps` steps."""
        return self.first + self.step * (steps - 1)


def tune(parts: "Parts", say: Callable[[str], None]) -> Execution:
    """The fastest way to run these parts for as long as they will, of those that the settings leave open.

    Candidates are timed on copies of the method and its optimizer; parts stay as they are, random state
    included. Timings are remembered by machine, network, size and batch, so that a second run chooses the same.
    With several processes each of them times, by itself, what it can do in every way, and the first decides among
    those that failed in none.
    """
    config = parts.config
    start = usual(config, parts.device)
    eager = eager_candidates(config, parts.device, parts.method)
    if parts.device.type not in ("cpu", "cuda") or not _worth_trying(parts):
        return start
    if len(eager) == 1 and not compiled_candidates(config, parts.device, start):
        return start
    file = remembered_in(parts)
    known = _recalled(parts)
    timings = known if known.keys() >= set(eager) else known | _measure(parts, eager, say)
    best = choose([timings[way] for way in eager], parts.steps)
    compiled = compiled_candidates(config, parts.device, best)
    if timings[best].total(parts.steps) > COMPILING_PAYS and not timings.keys() >= set(compiled):
        # What is known of the best stays: a second run must come to the same best.
        timings = _measure(parts, [best, *compiled], say) | timings
    open_ways = [timings[way] for way in [*eager, *compiled] if way in timings]
    chosen = choose(open_ways, parts.steps)
    if distributed.is_main():
        _remember(file, parts, timings)
        for line in in_words(open_ways, chosen, config.batch_size * config.accumulate):
            say(line)
    return chosen


def tune_views(parts: "Parts", say: Callable[[str], None]) -> None:
    """Compile the views for a GPU, where the run is long enough and the compiled ones prove equal and faster.

    The CPU has kernels of its own, which need no trial.
    """
    if parts.config.kernels == "plain" or parts.device.type != "cuda" or not _worth_trying(parts):
        return
    images = _raw_batch(parts, 0).images
    for part in parts.views.modules():
        if isinstance(part, Views):
            say(f"views of {part.image_size} px: {compile_if_faster(part, images)}")


def _worth_trying(parts: "Parts") -> bool:
    tune = parts.config.tune
    return tune == "always" or (tune == "auto" and parts.steps >= FEWEST_STEPS)


def compile_if_faster(views: Views, images: Tensor) -> str:
    """Compile a recipe, and keep that only if its views of uint8 `images` are the plain ones, and made faster.

    Returns what was found, in words.
    """
    expected, plain = _views_of(views, images)
    try:
        views.compile()
        _views_of(views, images)
        found, compiled = _views_of(views, images)
    except Exception as error:
        views.compile_no_longer()
        return f"cannot be compiled here: {' '.join(str(error).split())[:200]}"
    apart = float((found - expected).abs().max()) * max(views.std)
    figures = f"{plain * 1e3:.2f} ms plain, {compiled * 1e3:.2f} ms compiled"
    if apart <= GREY_LEVEL and compiled < MARGIN * plain:
        return f"{figures}: compiled"
    views.compile_no_longer()
    return f"{figures}, {apart * 255:.2g} grey levels apart: plain"


def _views_of(views: Views, images: Tensor) -> tuple[Tensor, float]:
    """The views from one seed, and the median seconds that making them takes."""
    times = []
    for _ in range(1 + TIMED_STEPS):
        generator = torch.Generator(images.device).manual_seed(0)
        synchronize(images.device)
        began = time.perf_counter()
        (made,) = views(images, generator)
        synchronize(images.device)
        times.append(time.perf_counter() - began)
    return made, median(times[1:])


def choose(timings: list[Timing], steps: int) -> Execution:
    """The way that is done first with `steps` steps; the first of the list, the usual one, unless beaten clearly.

    A way that failed, or whose first loss is not what it should be to its precision, is no choice. Where the
    usual one failed, any other beats it.
    """
    usual_way = timings[0]
    fit = [t for t in timings[1:] if not t.error and _agrees(t, usual_way) and _beats(t, usual_way, steps)]
    return min(fit, key=lambda t: t.total(steps), default=usual_way).execution


def _beats(timing: Timing, usual_way: Timing, steps: int) -> bool:
    coarser = usual_way.execution.precision == "fp32" != timing.execution.precision
    if usual_way.error:
        return True
    return timing.total(steps) < (COARSER_MARGIN if coarser else MARGIN) * usual_way.total(steps)


def _agrees(timing: Timing, usual_way: Timing) -> bool:
    coarser = max(AGREEMENT[t.execution.precision] for t in (timing, usual_way))
    return abs(timing.loss - timing.expected) <= coarser * max(1.0, abs(timing.expected))


def in_words(timings: list[Timing], chosen: Execution, images: int) -> Iterator[str]:
    """The table: a line a way; `images` is the number an optimizer step."""
    yield "tuned by a few real steps of each way (tune=off does without):"
    for timing in timings:
        mark = "  <- chosen" if timing.execution == chosen else ""
        yield f"  {timing.execution!s:<42} {_figures(timing, timings[0], images)}{mark}"


def _figures(timing: Timing, usual_way: Timing, images: int) -> str:
    if timing.error:
        return f"not possible here: {timing.error}"
    compiling = f", {timing.first:.0f} s to compile" if timing.execution.compile != "no" else ""
    differs = "" if _agrees(timing, usual_way) else f", but its loss is {timing.loss:.4g}, not {timing.expected:.4g}"
    return f"{timing.step * 1e3:7.1f} ms a step, {images / timing.step:6.0f} images/s{compiling}{differs}"


def _measure(parts: "Parts", ways: list[Execution], say: Callable[[str], None]) -> dict[Execution, Timing]:
    """Time each way: its first step by itself, then all in turns, so that a noisy moment hits them alike.

    The first of them that works says what the first loss should be. Returns the same on all processes.
    """
    if any(way.compile != "no" for way in ways):
        say("the run is long enough for compiling to pay: trying it takes a minute or two")
    raws = [_raw_batch(parts, number) for number in range(parts.config.accumulate)]
    # Alone, because a step that fails in one process would leave the others waiting within theirs.
    with distributed.alone(), torch.random.fork_rng(devices=[parts.device] if parts.device.type == "cuda" else []):
        # Kernels that are loaded or compiled once a process must not count for the way that happens to be first.
        _Trial(parts, replace(ways[0], compile="no")).begin(raws)
        trials = [_Trial(parts, way) for way in ways]
        for trial in trials:
            trial.begin(raws)
        took = sum(trial.first for trial in trials if trial.way.compile == "no")
        for _ in range(1 if took > LONG else TIMED_STEPS):
            for trial in trials:
                trial.step(raws)
    expected = next((trial.loss for trial in trials if not trial.error), 0.0)
    timings = {trial.way: trial.timing(expected) for trial in trials}
    del trials
    if parts.device.type == "cuda":
        # What the run says of its memory must not count these copies.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(parts.device)
    return _agreed(timings)


def _agreed(timings: dict[Execution, Timing]) -> dict[Execution, Timing]:
    """The first process's timings, but what failed in any of them failed."""
    everyones = distributed.everyones(timings)
    return everyones[0] | {way: timing for theirs in everyones for way, timing in theirs.items() if timing.error}


class _Trial:
    """One way on its own copy of the method, with its own optimizer; freed where it fails."""

    def __init__(self, parts: "Parts", way: Execution) -> None:
        self.way = way
        self.first, self.loss, self.error = 0.0, 0.0, ""
        self._times: list[float] = []
        self._given = self._parts = parts

    def begin(self, raws: list[RawBatch]) -> None:
        with self._failing():
            self._parts = self._copied(self._given)
            self.first, self.loss = self._timed(raws)

    def step(self, raws: list[RawBatch]) -> None:
        if not self.error:
            with self._failing():
                self._times.append(self._timed(raws)[0])

    def timing(self, expected: float) -> Timing:
        if self.error:
            return Timing(self.way, error=self.error)
        return Timing(self.way, self.first, median(self._times), self.loss, expected)

    def _copied(self, parts: "Parts") -> "Parts":
        method = deepcopy(parts.method)
        self.way.apply(method)
        optimizer = make_optimizer(method, parts.config.optimizer, parts.peak_lr, method.constant_lr)
        scaler = torch.amp.GradScaler(parts.device.type, enabled=self.way.precision == "fp16")
        return replace(parts, method=method, trained=method, optimizer=optimizer, scaler=scaler, execution=self.way)

    def _timed(self, raws: list[RawBatch]) -> tuple[float, float]:
        """Seconds and loss of one step."""
        began = time.perf_counter()
        # Reading the loss does not wait for the update that follows it.
        loss = float(train_step(self._parts, raws, 0)["loss"])
        synchronize(self._parts.device)
        return time.perf_counter() - began, loss

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever a way fails with, the run goes on without it."""
        try:
            yield
        except Exception as error:
            self.error = " ".join(str(error).split())[:200] or type(error).__name__
            self._parts = self._given


def _raw_batch(parts: "Parts", number: int) -> RawBatch:
    """Stored images, without disturbing the loader."""
    store, share = parts.stores.pretrain, parts.config.batch_size // distributed.world()
    rows = (np.arange(share) + number * share) % len(store)
    images = torch.from_numpy(store.read(rows)).to(parts.device).permute(0, 3, 1, 2)
    labels = None if store.labels is None else torch.from_numpy(store.labels[rows]).to(parts.device)
    return RawBatch(images, torch.from_numpy(rows).to(parts.device), labels)


# --- what is remembered ---


def images_per_second(parts: "Parts") -> float | None:
    """What the steps of this process take in their chosen way, where that was timed, now or in an earlier run."""
    timing = _recalled(parts).get(parts.execution)
    return parts.images_per_step / distributed.world() / timing.step if timing and timing.step else None


def _recalled(parts: "Parts") -> dict[Execution, Timing]:
    """What the first process remembers."""
    return distributed.from_main(recall(remembered_in(parts)) if distributed.is_main() else None)


def remembered_in(parts: "Parts") -> Path:
    return cache_dir() / "tune" / f"{digest(_key(parts))}.json"


def _key(parts: "Parts") -> dict[str, Any]:
    """Everything that the time of a step depends on."""
    config = parts.config
    return {
        "device": device_name(parts.device),
        "threads": torch.get_num_threads() if parts.device.type == "cpu" else None,
        "processes": distributed.world(),
        "torch": torch.__version__,
        "method": config.method.flat(),
        "backbone": config.backbone.flat(),
        "augment": config.augment.flat(),
        "kernels": config.kernels,
        "optimizer": config.optimizer.name,
        "image_size": parts.stores.image_size,
        "batch_size": config.batch_size,
        "micro_batch": config.micro_batch,
        "accumulate": config.accumulate,
        "deterministic": config.deterministic,
    }


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability() + " " + processor()


def recall(file: Path) -> dict[Execution, Timing]:
    """Timings of earlier runs; none from a file that cannot be read, for they can be made again."""
    try:
        records = json.loads(file.read_text(encoding="utf-8"))["timings"]
        timings = [Timing(**record | {"execution": Execution(**record["execution"])}) for record in records]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {timing.execution: timing for timing in timings}


def _remember(file: Path, parts: "Parts", timings: dict[Execution, Timing]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(file, {"about": _key(parts), "timings": [asdict(timing) for timing in timings.values()]})
