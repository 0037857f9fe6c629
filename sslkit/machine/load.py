"""Share the processor with other programs: how busy they are, and how many threads that leaves for training.

Threads that wait for each other at the end of every operation are slow where one of them must share its core: beside
one busy program, two threads on two cores train at 4 % of their speed, one thread at 30 % (benchmarks/LOG.md).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import psutil
import torch

from sslkit.machine import distributed

EVERY = 1.0
"""Seconds between two looks at the load."""
IDLE = 0.15
"""Idle cores below which the processor counts as fully used."""
BUSY = 0.5
"""Cores used by other programs from which on the processor counts as shared."""


@dataclass(frozen=True)
class Load:
    """Use of the processor over some time, in cores."""

    others: float
    """Used by other programs."""
    idle: float
    """Used by nobody."""

    @property
    def shared(self) -> bool:
        """True if other programs and this one want more cores than there are."""
        return self.others >= BUSY and self.idle < IDLE

    def threads(self, current: int, cores: int) -> int:
        """Threads to compute with from now on, 1 to `cores`, where `current` were used so far."""
        if self.shared:
            return max(1, min(current, round(cores - self.others)))
        # One more thread wherever there is room for it: a program that ended leaves its core idle.
        return min(cores, current + int(self.idle + IDLE))


class LoadMeter:
    """Measures the load since its last reading."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._last = self._sample()

    def read(self) -> Load:
        """Return the load since the last reading."""
        before, self._last = self._last, self._sample()
        wall, own, busy, idle = (now - then for now, then in zip(self._last, before))
        return Load(others=max(0.0, busy - own) / max(wall, 1e-9), idle=max(0.0, idle) / max(wall, 1e-9))

    def _sample(self) -> tuple[float, float, float, float]:
        """Seconds of wall-clock time, of this process, of all processes, and idle, summed over cores."""
        used = self._own.cpu_times()
        machine = psutil.cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        # Linux counts the time of guests within that of users.
        busy = sum(machine) - idle - getattr(machine, "guest", 0.0) - getattr(machine, "guest_nice", 0.0)
        return time.monotonic(), used.user + used.system, busy, idle


class ThreadGovernor:
    """Adapts the number of computing threads to the load of the machine, while training on the CPU.

    set_threads: called with the new number of threads. cores: the largest number; with 1 nothing ever changes. Other
    numbers of threads round sums otherwise, so a run on a shared machine is not reproducible to the bit.
    """

    def __init__(self, set_threads: Callable[[int], None], cores: int) -> None:
        self.cores = self.threads = cores
        self.load = Load(others=0.0, idle=0.0)
        """The load at the last look."""
        self._set = set_threads
        self._meter = LoadMeter()
        self._looked = time.monotonic()

    def describe(self) -> str:
        """The last decision as a sentence."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.threads == self.cores:
            return f"the machine is free again: computing with {threads}"
        return f"other programs use {self.load.others:.1f} of {self.cores} cores: computing with {threads}"

    def adjust(self) -> bool:
        """Look at the load, at most once a second; return True if the number of threads was changed."""
        now = time.monotonic()
        if self.cores == 1 or now - self._looked < EVERY:
            return False
        self._looked = now
        self.load = self._meter.read()
        threads = self.load.threads(self.threads, self.cores)
        if threads == self.threads:
            return False
        self.threads = threads
        self._set(threads)
        return True


@contextmanager
def computing_threads(threads: int | Literal["auto"], device: torch.device) -> Iterator[ThreadGovernor]:
    """Compute with so many threads inside the block, afterwards as before; auto: as the governor decides.

    On other devices than the CPU, and with a fixed number, the governor changes nothing.
    """
    before = torch.get_num_threads()
    if threads != "auto":
        torch.set_num_threads(threads)
    # Processes of one run would take each other for other programs.
    adaptive = threads == "auto" and device.type == "cpu" and distributed.local_world() == 1
    try:
        yield ThreadGovernor(torch.set_num_threads, before if adaptive else 1)
    finally:
        torch.set_num_threads(before)
