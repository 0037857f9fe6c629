"""Decode large pictures in few threads: every core with one in hand would fill memory.

They have threads of their own, because the allocator keeps the memory that each thread has freed.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LARGE = 20_000_000
"""Pixels from which a picture is large."""
LARGEST = 180_000_000
"""Pixels of the largest pictures that are read by default."""
SHARE, BYTES_PER_PIXEL = 16, 8
"""They may take one part of free memory divided into so many parts; decoding takes up to so many bytes for a pixel."""


class LargePictures:
    """Threads that decode large pictures."""

    def decode(self, pixels: int, function: Callable[P, R], *args: P.args, **how: P.kwargs) -> R:
        """Return `function(*args, **how)`, which decodes so many pixels: at once, or, if they are many, in turn."""
        if pixels <= LARGE:
            return function(*args, **how)
        return self._threads.submit(function, *args, **how).result()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_affordable(), thread_name_prefix="sslkit-large")


def _affordable() -> int:
    """Return the number of large pictures that free memory allows at a time, at least one."""
    # Imported here, because processes that decode small images would wait for torch.
    import torch

    from sslkit.machine.memory import free_memory

    return max(1, free_memory(torch.device("cpu")) // (SHARE * BYTES_PER_PIXEL * LARGEST))
