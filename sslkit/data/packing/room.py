"""A limit on the pixels that are decoded at once: every core with a large picture in hand would fill memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from threading import Condition

LARGE = 20_000_000
"""Pixels up to which an image needs no room of its own."""
SMALLEST = 180_000_000
"""Pixels for which there is always room, about 1 GB: one of the largest pictures that are read by default."""
SHARE, BYTES_PER_PIXEL = 16, 8
"""Pixels may take one part of free memory divided into so many parts; decoding takes up to so many bytes for each."""


class Room:
    """Room for the pixels of large images, which threads share."""

    def __init__(self) -> None:
        self._used = 0
        self._changed = Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait for room, and take it inside the block; an image larger than all of it waits to be alone."""
        if pixels <= LARGE:
            yield
            return
        with self._changed:
            pixels = min(pixels, self._pixels)
            self._changed.wait_for(lambda: self._used + pixels <= self._pixels)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()

    @cached_property
    def _pixels(self) -> int:
        # Imported here, because processes that decode small images would wait for torch.
        import torch

        from sslkit.machine.memory import free_memory

        return max(SMALLEST, free_memory(torch.device("cpu")) // (SHARE * BYTES_PER_PIXEL))
