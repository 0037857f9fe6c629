"""Time work on a device: the clock starts and stops when the device has finished what it was given."""

import time
from collections.abc import Callable

import torch

from sslkit.machine.devices import synchronize


class Stopwatch:
    """Context that times its block: `with Stopwatch(device) as watch: ...`, then `watch.seconds`.

    device: waited for at both ends; None: work on the host alone. `wait` replaces that waiting.
    """

    def __init__(self, device: torch.device | None = None, wait: Callable[[], None] | None = None) -> None:
        self.seconds = 0.0
        """Wall-clock seconds of the block; 0 before its end."""
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
