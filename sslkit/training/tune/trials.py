"""Each way to run a network takes a few real steps, on copies of the method and its optimizer."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sslkit.data.loaders.base import RawBatch
from sslkit.errors import in_one_line
from sslkit.machine import distributed
from sslkit.machine.devices import release, synchronize
from sslkit.training.execution import Execution
from sslkit.training.optim.optimizer import make_optimizer
from sslkit.training.out_of_memory import is_out_of_memory
from sslkit.training.step import train_step
from sslkit.training.tune.timings import Timing

if TYPE_CHECKING:
    from sslkit.training.setup import Parts

TIMED_STEPS = 3
"""Steps of each way after the first, which warms up and is timed apart."""
LONG = 20.0
"""Seconds that the first steps of all ways may take together; where they take longer, one further step is timed."""


def measure(parts: "Parts", ways: list[Execution], say: Callable[[str], None]) -> dict[Execution, Timing]:
    """Time each way: its first step by itself, then all in turns, so that a noisy moment hits them alike.

    The first of them that works says what the first loss should be. Returns the same on all processes.
    """
    compiling = any(way.compile != "no" for way in ways)
    say(f"trying {len(ways)} ways to run the network" + (", compiled too, for a minute or two" if compiling else ""))
    raws = [stored_batch(parts, number) for number in range(parts.config.accumulate)]
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
    Trial(parts, replace(ways[0], compile="no")).begin(raws)
    trials = [Trial(parts, way) for way in ways]
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


class Trial:
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


def stored_batch(parts: "Parts", number: int) -> RawBatch:
    """Stored images, without disturbing the loader."""
    store, share = parts.stores.pretrain, parts.config.batch_size // distributed.world()
    rows = (np.arange(share) + number * share) % len(store)
    images = torch.from_numpy(store.read(rows)).to(parts.device).permute(0, 3, 1, 2)
    labels = None if store.labels is None else torch.from_numpy(store.labels[rows]).to(parts.device)
    return RawBatch(images, torch.from_numpy(rows).to(parts.device), labels)
