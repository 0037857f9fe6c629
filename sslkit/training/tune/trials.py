"""Time a few real training steps of each execution, on copies of the method and its optimizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sslkit.data.loaders.base import ImageBatch
from sslkit.errors import in_one_line
from sslkit.machine import distributed
from sslkit.machine.devices import release
from sslkit.machine.stopwatch import Stopwatch
from sslkit.training.execution import Execution
from sslkit.training.optim.optimizer import make_optimizer
from sslkit.training.out_of_memory import is_out_of_memory
from sslkit.training.step import train_step
from sslkit.training.tune.timings import Timing

if TYPE_CHECKING:
    from sslkit.training.setup import TrainingSetup

TIMED_STEPS = 3
"""Timed steps of each candidate after the first, which is for warm-up and timed separately."""
LONG = 20.0
"""Total seconds of the candidates' first steps beyond which only one further step of each is timed."""


def measure(setup: "TrainingSetup", candidates: list[Execution], log: Callable[[str], None]) -> dict[Execution, Timing]:
    """Time the candidates: the first step of each, then further steps in turns, so that noise affects all alike.

    The first candidate that works defines the expected loss. Returns the same on all processes.
    """
    compiling = any(candidate.compile != "no" for candidate in candidates)
    log(
        f"trying {len(candidates)} executions of the network"
        + (", some of them compiled, which takes a minute or two" if compiling else "")
    )
    image_batches = [stored_batch(setup, number) for number in range(setup.config.accumulate)]
    # Without communication, because a step that fails in one process would leave the others waiting in theirs.
    with distributed.alone(), torch.random.fork_rng(devices=[setup.device] if setup.device.type == "cuda" else []):
        timings = _take_turns(setup, candidates, image_batches)
    release(setup.device)
    if setup.device.type == "cuda":
        # The peak memory that the run reports must not include the copies.
        torch.cuda.reset_peak_memory_stats(setup.device)
    return _agreed(timings)


def _take_turns(
    setup: "TrainingSetup", candidates: list[Execution], image_batches: list[ImageBatch]
) -> dict[Execution, Timing]:
    # Kernels that are loaded or compiled once per process must not add to the time of the first candidate.
    Trial(setup, replace(candidates[0], compile="no")).begin(image_batches)
    trials = [Trial(setup, candidate) for candidate in candidates]
    for trial in trials:
        trial.begin(image_batches)
    took = sum(trial.first for trial in trials if trial.candidate.compile == "no")
    for _ in range(1 if took > LONG else TIMED_STEPS):
        for trial in trials:
            trial.step(image_batches)
    expected = next((trial.loss for trial in trials if not trial.error), 0.0)
    return {trial.candidate: trial.timing(expected) for trial in trials}


def _agreed(timings: dict[Execution, Timing]) -> dict[Execution, Timing]:
    """Return the timings of the slowest process, which the others wait for, or of one in which the candidate failed."""
    everyones = distributed.everyones(timings)
    return {
        candidate: max((theirs[candidate] for theirs in everyones), key=lambda t: (t.error, t.step))
        for candidate in timings
    }


class Trial:
    """One candidate with its own copy of the method and its own optimizer, which are freed if it fails."""

    def __init__(self, setup: "TrainingSetup", candidate: Execution) -> None:
        self.candidate = candidate
        self.first, self.loss, self.error, self.passing = 0.0, 0.0, "", False
        self._times: list[float] = []
        self._given = self._setup = setup

    def begin(self, image_batches: list[ImageBatch]) -> None:
        with self._failing():
            self._setup = self._copied(self._given)
            self.first, self.loss = self._timed(image_batches)

    def step(self, image_batches: list[ImageBatch]) -> None:
        if not self.error:
            with self._failing():
                self._times.append(self._timed(image_batches)[0])

    def timing(self, expected: float) -> Timing:
        if self.error:
            return Timing(self.candidate, error=self.error, passing=self.passing)
        return Timing(self.candidate, self.first, min(self._times), self.loss, expected)

    def _copied(self, setup: "TrainingSetup") -> "TrainingSetup":
        method = deepcopy(setup.method)
        self.candidate.apply(method)
        optimizer = make_optimizer(method, setup.config.optimizer, setup.peak_lr, method.constant_lr)
        scaler = torch.amp.GradScaler(setup.device.type, enabled=self.candidate.precision == "fp16")
        return replace(
            setup, method=method, trained=method, optimizer=optimizer, scaler=scaler, execution=self.candidate
        )

    def _timed(self, image_batches: list[ImageBatch]) -> tuple[float, float]:
        """Return the seconds and the loss of one step."""
        with Stopwatch(self._setup.device) as watch:
            # The stopwatch synchronises, because reading the loss does not wait for the optimizer's update.
            loss = float(train_step(self._setup, image_batches, 0)["loss"])
        return watch.seconds, loss

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Record any exception of the block as the error of this candidate, so that the run continues without it."""
        try:
            yield
        except Exception as error:
            self.error, self.passing = in_one_line(error), is_out_of_memory(error)
            self._setup = self._given
        if self.error:
            # Make the memory of this candidate available to the next ones.
            release(self._given.device)


def stored_batch(setup: "TrainingSetup", number: int) -> ImageBatch:
    """Return batch `number` of the stored images, without affecting the loader."""
    store, share = setup.stores.pretrain, setup.config.batch_size // distributed.world()
    rows = (np.arange(share) + number * share) % len(store)
    images = torch.from_numpy(store.read(rows)).to(setup.device).permute(0, 3, 1, 2)
    labels = None if store.labels is None else torch.from_numpy(store.labels[rows]).to(setup.device)
    return ImageBatch(images, torch.from_numpy(rows).to(setup.device), labels)
