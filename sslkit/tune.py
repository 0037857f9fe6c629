"""Which way of running the network is the fastest here: a few real steps of each are timed, and remembered.

`tune` at the top decides, by `_fastest` on the network and by `try_compiled` on a GPU's views; `choose` is a pure
function of timings, and `_measure` below it makes them.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sslkit import atomic, distributed
from sslkit.augment.views import Views
from sslkit.data.loaders import RawBatch
from sslkit.data.source import cache_dir, digest
from sslkit.devices import release, synchronize
from sslkit.errors import in_one_line
from sslkit.execution import Execution, compiled_candidates, eager_candidates, recipes, usual
from sslkit.memory import is_out_of_memory
from sslkit.optim import make_optimizer
from sslkit.runs import package_version, processor
from sslkit.step import train_step

if TYPE_CHECKING:
    from sslkit.build import Parts

GREY_LEVEL = 1 / 255
"""How far a compiled view may lie from the plain one, where white is 1: what a uint8 image can show."""
STRAY_PIXELS = 1e-4
"""Share of the values that may lie farther: solarizing makes much of a difference in the last digit."""
FEWEST_STEPS = 500
"""A shorter run would lose more by trying than it could gain."""
ALWAYS_STEPS = 100_000
"""`tune=always` judges by so many steps, beside which the first one is of no account."""
TIMED_STEPS = 3
"""Steps of each way after the first, which warms up and is timed apart."""
LONG = 20.0
"""Seconds that the first steps of all ways may take together; where they take longer, one further step is timed."""
COMPILING_PAYS = 600.0
"""Seconds that a run must still take before compiling, which costs a minute or so, is tried."""
VIEWS_COMPILING_PAYS = 120.0
"""Seconds that a run must spend on plain views before a GPU tries compiled ones, which costs less than a minute."""
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
    """Seconds of a further step, the shortest of a few: what disturbs one, as memory taken anew does, only adds."""
    loss: float = 0.0
    """Loss of the first step, of the same weights and views for every way timed with it."""
    expected: float = 0.0
    """That of the first way timed with it: a later run, of another seed, may have timed the others."""
    error: str = ""
    """Why it cannot be used here."""
    passing: bool = False
    """Whether that may be otherwise another day: memory ran out, which others may have held."""

    def total(self, steps: int) -> float:
        """Expected seconds of a run of `steps` steps."""
        return self.first + self.step * (steps - 1)


def tune(parts: "Parts", say: Callable[[str], None]) -> Execution:
    """The fastest way to run these parts for as long as they will, of those that the settings leave open.

    Candidates are timed on copies of the method and its optimizer; parts stay as they are, random state
    included. Timings are remembered by machine, network, size and batch, so that a second run chooses the same.
    With several processes each of them times, by itself, what it can do in every way; the slowest one's times
    count, and what failed in one of them failed.
    """
    steps = _steps_to_judge_by(parts)
    if parts.device.type not in ("cpu", "cuda") or steps < FEWEST_STEPS:
        return distributed.from_main(usual(parts.config, parts.device))
    known = _recalled(parts)
    way, timings = _fastest(parts, known.timings, steps, say)
    views, faster = _compiled_views(parts, steps, known.compiled_views, say)
    if distributed.is_main() and Known(timings, faster) != known:
        _remember(parts, Known(timings, faster), say)
    return replace(way, compiled_views=views, compile="default" if parts.config.compile is True else way.compile)


def _steps_to_judge_by(parts: "Parts") -> int:
    """Steps that a way would be chosen for; 0 where none is to be tried."""
    return {"off": 0, "auto": parts.steps, "always": max(parts.steps, ALWAYS_STEPS)}[parts.config.tune]


def _fastest(
    parts: "Parts", timings: dict[Execution, Timing], steps: int, say: Callable[[str], None]
) -> tuple[Execution, dict[Execution, Timing]]:
    """The way, and `timings` with what had to be measured to know it."""
    config, device = parts.config, parts.device
    # Processes may have unlike cards: the first one's candidates are everyone's.
    eager = distributed.from_main(eager_candidates(config, device, parts.method))
    if len(eager) == 1 and not compiled_candidates(config, device, eager[0]):
        return eager[0], timings
    if not timings.keys() >= set(eager):
        timings = timings | _measure(parts, eager, say)
    best = choose([timings[way] for way in eager], steps)
    compiled = compiled_candidates(config, device, best)
    tried = timings[best].total(steps) > COMPILING_PAYS and not timings.keys() >= set(compiled)
    if tried:
        timings = _beside(timings, best, _measure(parts, [best, *compiled], say))
    open_ways = [timings[way] for way in [*eager, *compiled] if way in timings]
    chosen = choose(open_ways, steps)
    if tried and chosen.compile != "graphs":
        # Recorded graphs would hold a step's memory for the rest of the process.
        _forget_compiled(device)
    for line in in_words(open_ways, chosen, config.batch_size * config.accumulate):
        say(line)
    return chosen, timings


def _beside(known: dict[Execution, Timing], best: Execution, fresh: dict[Execution, Timing]) -> dict[Execution, Timing]:
    """`known`, and `fresh` timings at the pace that the machine had when `best` was timed first.

    Machines drift; and what is known of the best stays, for a second run must come to the same best.
    """
    drift = known[best].step / fresh[best].step if known[best].step and fresh[best].step else 1.0
    return {way: replace(timing, step=timing.step * drift) for way, timing in fresh.items()} | known


def _forget_compiled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.compiler.reset()
        release(device)


def _compiled_views(
    parts: "Parts", steps: int, known: bool | None, say: Callable[[str], None]
) -> tuple[bool, bool | None]:
    """(whether this run compiles its views, whether compiled ones are known to be faster; None: not known)."""
    if not _views_can_be_compiled(parts):
        return False, known
    images = _raw_batch(parts, 0).images[: parts.config.micro_batch]
    plain = _plain_seconds(parts, images)
    if distributed.from_main(plain * steps) < VIEWS_COMPILING_PAYS:
        return False, known
    if known is None:
        tried = [try_compiled(recipe, images) for recipe in recipes(parts.views)]
        for recipe, (_, found) in zip(recipes(parts.views), tried):
            say(f"views of {recipe.image_size} px: {found}")
        known = in_all([in_all(theirs) for theirs in distributed.everyones([faster for faster, _ in tried])])
    release(parts.device)
    return bool(known), known


def _views_can_be_compiled(parts: "Parts") -> bool:
    """The CPU has kernels of its own for them, which need no trial."""
    return parts.device.type == "cuda" and parts.config.kernels == "auto" and parts.config.compile is not False


def _plain_seconds(parts: "Parts", images: Tensor) -> float:
    """What making the views by plain operations takes; 0 where that fails, which the first step will say better."""
    try:
        return sum(_views_of(recipe, images)[1] for recipe in recipes(parts.views))
    except RuntimeError:
        return 0.0


def in_all(answers: list[bool | None]) -> bool | None:
    """No where one of them is no, else unknown where one is, or where there is none."""
    if False in answers:
        return False
    return None if None in answers or not answers else True


def try_compiled(views: Views, images: Tensor) -> tuple[bool | None, str]:
    """(whether a recipe's compiled views are as good and faster, what was found, in words); they stay uncompiled.

    As good: views of uint8 `images` are the plain ones to a grey level. None: memory ran out, which may not be so
    another day.
    """
    try:
        expected, plain = _views_of(views, images)
        views.compile()
        _views_of(views, images)
        found, compiled = _views_of(views, images)
        others = _share_of_others(found, expected, views)
    except Exception as error:
        return None if is_out_of_memory(error) else False, f"cannot be compiled here: {in_one_line(error)}"
    finally:
        views.compile_no_longer()
    faster = others <= STRAY_PIXELS and compiled < MARGIN * plain
    figures = f"{plain * 1e3:.2f} ms plain, {compiled * 1e3:.2f} ms compiled"
    unlike = f", {100 * others:.2g} % of the pixels unlike" if others > STRAY_PIXELS else ""
    return faster, f"{figures}{unlike}: {'compiled' if faster else 'plain'}"


def _share_of_others(found: Tensor, expected: Tensor, views: Views) -> float:
    """Share of the values that are more than a grey level apart."""
    deviation = torch.tensor(views.std, device=found.device).view(3, 1, 1)
    return float(((found - expected).abs() * deviation > GREY_LEVEL).float().mean())


def _views_of(views: Views, images: Tensor) -> tuple[Tensor, float]:
    """The views from one seed, and the seconds that making them takes, at best."""
    times = []
    for _ in range(1 + TIMED_STEPS):
        generator = torch.Generator(images.device).manual_seed(0)
        synchronize(images.device)
        began = time.perf_counter()
        (made,) = views(images, generator)
        synchronize(images.device)
        times.append(time.perf_counter() - began)
    return made, min(times[1:])


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
    compiling = any(way.compile != "no" for way in ways)
    say(f"trying {len(ways)} ways to run the network" + (", compiled too, for a minute or two" if compiling else ""))
    raws = [_raw_batch(parts, number) for number in range(parts.config.accumulate)]
    # Alone, because a step that fails in one process would leave the others waiting within theirs.
    with distributed.alone(), torch.random.fork_rng(devices=[parts.device] if parts.device.type == "cuda" else []):
        timings = _take_turns(parts, ways, raws)
    release(parts.device)
    if parts.device.type == "cuda":
        # What the run says of its memory must not count the copies.
        torch.cuda.reset_peak_memory_stats(parts.device)
    return _agreed(timings)


def _take_turns(parts: "Parts", ways: list[Execution], raws: list[RawBatch]) -> dict[Execution, Timing]:
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
    return {trial.way: trial.timing(expected) for trial in trials}


def _agreed(timings: dict[Execution, Timing]) -> dict[Execution, Timing]:
    """Of all processes the slowest, which the others wait for; what failed in one of them failed."""
    everyones = distributed.everyones(timings)
    return {way: max((theirs[way] for theirs in everyones), key=lambda t: (t.error, t.step)) for way in timings}


class _Trial:
    """One way on its own copy of the method, with its own optimizer; freed where it fails."""

    def __init__(self, parts: "Parts", way: Execution) -> None:
        self.way = way
        self.first, self.loss, self.error, self.passing = 0.0, 0.0, "", False
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
            return Timing(self.way, error=self.error, passing=self.passing)
        return Timing(self.way, self.first, min(self._times), self.loss, expected)

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
            self.error, self.passing = in_one_line(error), is_out_of_memory(error)
            self._parts = self._given
        if self.error:
            # The ways that follow need what this one had taken.
            release(self._given.device)


def _raw_batch(parts: "Parts", number: int) -> RawBatch:
    """Stored images, without disturbing the loader."""
    store, share = parts.stores.pretrain, parts.config.batch_size // distributed.world()
    rows = (np.arange(share) + number * share) % len(store)
    images = torch.from_numpy(store.read(rows)).to(parts.device).permute(0, 3, 1, 2)
    labels = None if store.labels is None else torch.from_numpy(store.labels[rows]).to(parts.device)
    return RawBatch(images, torch.from_numpy(rows).to(parts.device), labels)


# --- what is remembered ---


@dataclass(frozen=True)
class Known:
    """What earlier runs found out."""

    timings: dict[Execution, Timing] = field(default_factory=dict)
    """Of ways with plain views, which cost them all the same."""
    compiled_views: bool | None = None
    """Whether compiled views are as good as plain ones, and faster; None: not known."""


def images_per_second(parts: "Parts") -> float | None:
    """What the steps of this process take in their chosen way, where that was timed, now or in an earlier run."""
    timings = _recalled(parts).timings
    way = replace(parts.execution, compiled_views=False)
    # Where the settings ask for compiled networks, only uncompiled ones were timed.
    timing = timings.get(way) or timings.get(replace(way, compile="no"))
    return parts.images_per_step / distributed.world() / timing.step if timing and timing.step else None


def _recalled(parts: "Parts") -> Known:
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
        "sslkit": package_version("sslkit"),
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


def recall(file: Path) -> Known:
    """What is known from earlier runs; nothing from a file that cannot be read, for it can be found out again."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        timings = [Timing(**record | {"execution": Execution(**record["execution"])}) for record in told["timings"]]
        return Known({timing.execution: timing for timing in timings}, told["compiled_views"])
    except (OSError, ValueError, KeyError, TypeError):
        return Known()


def _remember(parts: "Parts", known: Known, say: Callable[[str], None]) -> None:
    lasting = [asdict(timing) for timing in known.timings.values() if not timing.passing]
    told = {"about": _key(parts), "compiled_views": known.compiled_views, "timings": lasting}
    try:
        atomic.write_json(remembered_in(parts), told)
    except OSError as error:
        say(f"what was timed cannot be kept for other runs: {error}")
