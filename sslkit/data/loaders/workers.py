"""Choose the number of decoding threads, which compete with the network for the cores of the CPU.

`decide` measures and logs the choice; `enough` is a pure function of the measurements.
"""

import math
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from sslkit.data.packing.store import Store
from sslkit.machine.environment import core_count
from sslkit.machine.stopwatch import Stopwatch

if TYPE_CHECKING:
    from sslkit.data.loaders.base import Loader

AHEAD = 1.5
"""Required ratio of decoding speed to training speed, because batches come in bursts and cores are shared."""
TRIED = 64
"""Images that are decoded to measure the speed of one core."""
GROUPS = 4
"""Groups of these images that are timed separately: the median ignores a group that was delayed."""


def decide(loader: "Loader", needed: float | None, log: Callable[[str], None], processes: int = 1) -> None:
    """Set `loader.workers` before its first epoch, for training at `needed` images/s (None: unknown).

    processes: number of processes that share the cores of this machine. The resident loader is left unchanged: it has
    already decoded all images, with all cores.
    """
    if loader.kind == "resident":
        return
    cores = max(1, core_count() // processes)
    busy = loader.device.type == "cpu"
    one = rate_of_one(loader.store) if busy and needed else None
    loader.workers = enough(one, needed, cores, busy)
    log(in_words(loader.workers, one, needed, cores, busy))


def enough(one: float | None, needed: float | None, cores: int, busy: bool) -> int:
    """Return the smallest number of cores that decode `AHEAD` × `needed` images/s, if one core decodes `one` images/s.

    Return all cores if they are not `busy` with the network, and half of them, but at least one, if a speed is unknown.
    """
    if not busy:
        return cores
    if not one or not needed:
        return max(1, cores // 2)
    return min(cores, max(1, math.ceil(AHEAD * needed / one)))


def in_words(workers: int, one: float | None, needed: float | None, cores: int, busy: bool) -> str:
    """Describe the choice and its reason in one line."""
    if not busy:
        why = "the network does not run on the CPU"
    elif one and needed:
        why = f"one decodes {one:,.0f} images/s, training takes {needed:,.0f}"
    else:
        why = "half of them, because the speed of training is unknown"
    return f"decoding with {workers} of {cores} core{'s' if cores > 1 else ''}: {why}"


def rate_of_one(store: Store) -> float:
    """Measure the images/s that one thread decodes, on random rows of the store."""
    rows = np.random.default_rng(0).integers(len(store), size=TRIED * 2)
    store.read(rows[:TRIED])
    seconds = []
    for group in np.array_split(rows[TRIED:], GROUPS):
        with Stopwatch() as watch:
            store.read(group)
        seconds.append(watch.seconds / len(group))
    return 1 / median(seconds)
