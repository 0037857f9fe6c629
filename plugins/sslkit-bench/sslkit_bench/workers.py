"""torch's DataLoader, as other libraries use it, with worker processes that can be suspended between turns."""

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, RandomSampler

WITHOUT_END = 10**6
"""Batches per pass: a new pass starts with empty queues, and small data sets would need one every few steps."""
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


class Workers:
    """Endless shuffled batches from worker processes, which `rest` suspends and `wake` continues.

    Otherwise they would fill their queue during the turns of others, which would slow those down, and make their own
    next turn faster.
    """

    def __init__(self, data: Any, batch_size: int, workers: int) -> None:
        self._loader = DataLoader(
            data,
            batch_size=batch_size,
            sampler=RandomSampler(data, replacement=True, num_samples=batch_size * WITHOUT_END),
            num_workers=workers,
            worker_init_fn=_die_with_parent,
            drop_last=True,
        )
        self._batches: Iterator[Any] | None = None
        self._processes: list[Any] = []

    def __iter__(self) -> "Workers":
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            self._start()
        assert self._batches is not None
        return next(self._batches)

    def _start(self) -> None:
        before = {process.pid for process in multiprocessing.active_children()}
        with warnings.catch_warnings():
            # Python 3.12 warns about forks in multi-threaded processes, which torch's loader does by default.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._batches = iter(self._loader)
        self._processes = [p for p in multiprocessing.active_children() if p.pid not in before]

    def rest(self) -> None:
        self._signal("SIGSTOP")

    def wake(self) -> None:
        self._signal("SIGCONT")

    def close(self) -> None:
        self.wake()
        self._batches, self._processes = None, []

    def _signal(self, name: str) -> None:
        # Windows has neither signal; there, workers continue until their queue is full.
        for process in self._processes if hasattr(signal, name) else ():
            if process.is_alive():
                os.kill(process.pid, getattr(signal, name))


def _die_with_parent(worker: int) -> None:
    """Kill this process if its parent is killed: a suspended process would otherwise stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
