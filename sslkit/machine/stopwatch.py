"""Time work on a device, synchronising with it before and after."""

import time
from collections.abc import Callable

import torch

from sslkit.machine.devices import synchronize


class Stopwatch:
    """Context that times its block: `with Stopwatch(device) as watch: ...`, then `watch.seconds`.

    device: synchronised at both ends; None: the work is on the host only. wait: called instead of synchronising.
    """

    def __init__(self, device: torch.device | None = None, wait: Callable[[], None] | None = None) -> None:
        self.seconds = 0.0
        """Wall-clock seconds of the block; 0 until it has ended."""
        self._device = device
        self._wait = wait or self._synchronize

    def __enter__(self) -> "Stopwatch":
        self._wait()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._wait()
        self.seconds = time.perf_counter() - self._began

    def _synchronize(self) -> None:
        if self._device is not None:
            synchronize(self._device)
