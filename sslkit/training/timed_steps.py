"""Time a few real training steps; they change the weights of the setup that takes them."""

import time
from collections.abc import Iterator
from itertools import chain, count, islice
from typing import Any

from sslkit.machine.stopwatch import Stopwatch
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import train_step


def endless_batches(setup: TrainingSetup) -> Iterator[Any]:
    """Yield the batches of all epochs, one after the other."""
    return chain.from_iterable(setup.loader.epoch(epoch, 0) for epoch in count())


def timed_steps(setup: TrainingSetup, batches: Iterator[Any], most: int, at_most_seconds: float) -> Iterator[float]:
    """Yield the seconds of each of up to `most` steps; at least one is taken, none after `at_most_seconds`."""
    began = time.perf_counter()
    for number in range(1, most + 1):
        with Stopwatch(setup.device) as watch:
            step = min(number, setup.steps - 1)
            image_batches = list(islice(batches, setup.config.accumulate))
            setup.schedule.set(step)
            train_step(setup, image_batches, step)
        yield watch.seconds
        if time.perf_counter() - began > at_most_seconds:
            return
