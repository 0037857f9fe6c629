"""How many cores decode: with a loader that streams, decoding takes its cores from the network.

`decide` at the top measures and says what it found; `enough` is a pure function of the figures.
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
"""Decoding must be this many times as fast as the steps: batches come in bursts, and the cores are shared."""
TRIED = 64
"""Images that are decoded to see how fast one core is."""
PIECES = 4
"""TrainingSetup of which each is timed: their median takes no notice of one that was held up."""


def decide(loader: "Loader", needed: float | None, log: Callable[[str], None], processes: int = 1) -> None:
    """Set `loader.workers`, before its first epoch, for steps that take `needed` images/s (None: not known).

    `processes` of this machine share its cores. The resident loader decodes before the first step with all of them.
    """
    if loader.kind == "resident":
        return
    cores = max(1, core_count() // processes)
    busy = loader.device.type == "cpu"
    one = rate_of_one(loader.store) if busy and needed else None
    loader.workers = enough(one, needed, cores, busy)
    log(in_words(loader.workers, one, needed, cores, busy))


def enough(one: float | None, needed: float | None, cores: int, busy: bool) -> int:
    """The smallest number of cores that decode AHEAD times what the steps take; one decodes `one` images/s.

    All where the cores are not `busy` with the network; half of them, at least one, where a figure is not known.
    """
    if not busy:
        return cores
    if not one or not needed:
        return max(1, cores // 2)
    return min(cores, max(1, math.ceil(AHEAD * needed / one)))


def in_words(workers: int, one: float | None, needed: float | None, cores: int, busy: bool) -> str:
    """The choice and why, in one line."""
    if not busy:
        why = "the network needs none of them"
    elif one and needed:
        why = f"one decodes {one:,.0f} images/s, a step takes {needed:,.0f}"
    else:
        why = "half of them, for the time of a step is not known"
    return f"decoding with {workers} of {cores} core{'s' if cores > 1 else ''}: {why}"


def rate_of_one(store: Store) -> float:
    """Images/s that one thread decodes, of rows from all over the store."""
    rows = np.random.default_rng(0).integers(len(store), size=TRIED * 2)
    store.read(rows[:TRIED])
    seconds = []
    for piece in np.array_split(rows[TRIED:], PIECES):
        with Stopwatch() as watch:
            store.read(piece)
        seconds.append(watch.seconds / len(piece))
    return 1 / median(seconds)
