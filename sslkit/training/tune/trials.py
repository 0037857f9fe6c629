"""Each execution of a network takes a few real steps, on copies of the method and its optimizer."""

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
"""Steps of each candidate after the first, which warms up and is timed apart."""
LONG = 20.0
"""Seconds that the first steps of all candidates may take together; if they take longer, one further step is timed."""


def measure(setup: "TrainingSetup", candidates: list[Execution], log: Callable[[str], None]) -> dict[Execution, Timing]:
    """Time each candidate: its first step by itself, then all in turns, so that a noisy moment hits them alike.

    The first of them that works says what the first loss should be. Returns the same on all processes.
    """
    compiling = any(candidate.compile != "no" for candidate in candidates)
    log(
        f"trying {len(candidates)} executions of the network"
        + (", compiled too, for a minute or two" if compiling else "")
    )
    image_batches = [stored_batch(setup, number) for number in range(setup.config.accumulate)]
    # Alone, because a step that fails in one process would leave the others waiting within theirs.
    with distributed.alone(), torch.random.fork_rng(devices=[setup.device] if setup.device.type == "cuda" else []):
        timings = _take_turns(setup, candidates, image_batches)
    release(setup.device)
    if setup.device.type == "cuda":
        # What the run says of its memory must not count the copies.
        torch.cuda.reset_peak_memory_stats(setup.device)
    return _agreed(timings)


def _take_turns(
    setup: "TrainingSetup", candidates: list[Execution], image_batches: list[ImageBatch]
) -> dict[Execution, Timing]:
    # Kernels that are loaded or compiled once a process must not count for the candidate that happens to be first.
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
    """Of all processes the slowest, which the others wait for; what failed in one of them failed."""
    everyones = distributed.everyones(timings)
    return {
        candidate: max((theirs[candidate] for theirs in everyones), key=lambda t: (t.error, t.step))
        for candidate in timings
    }


class Trial:
    """One candidate on its own copy of the method, with its own optimizer; freed where it fails."""

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
        """Seconds and loss of one step."""
        with Stopwatch(self._setup.device) as watch:
            # Reading the loss does not wait for the update that follows it.
            loss = float(train_step(self._setup, image_batches, 0)["loss"])
        return watch.seconds, loss

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever a candidate fails with, the run goes on without it."""
        try:
            yield
        except Exception as error:
            self.error, self.passing = in_one_line(error), is_out_of_memory(error)
            self._setup = self._given
        if self.error:
            # The candidates that follow need what this one had taken.
            release(self._given.device)


def stored_batch(setup: "TrainingSetup", number: int) -> ImageBatch:
    """Stored images, without disturbing the loader."""
    store, share = setup.stores.pretrain, setup.config.batch_size // distributed.world()
    rows = (np.arange(share) + number * share) % len(store)
    images = torch.from_numpy(store.read(rows)).to(setup.device).permute(0, 3, 1, 2)
    labels = None if store.labels is None else torch.from_numpy(store.labels[rows]).to(setup.device)
    return ImageBatch(images, torch.from_numpy(rows).to(setup.device), labels)
