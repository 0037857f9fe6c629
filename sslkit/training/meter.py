"""Training metrics, accumulated on the device and read once per logging interval."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sslkit.errors import UserError
from sslkit.machine import distributed
from sslkit.machine.memory import peak_memory
from sslkit.machine.stopwatch import Stopwatch
from sslkit.nn.health import effective_rank, feature_std

if TYPE_CHECKING:
    from sslkit.runs.run import Run


class Meter:
    """Running sums of metrics on the device; adding to them never synchronises host and device."""

    def __init__(self, backbone: nn.Module, device: torch.device, seconds: float = 0.0) -> None:
        self._backbone = backbone
        self._device = device
        self._features: Tensor | None = None
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._step = 0
        self._seconds = seconds
        self._hook: Any = None
        self.start()

    def __enter__(self) -> "Meter":
        self._hook = self._backbone.register_forward_hook(self._keep_features)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _keep_features(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training:
            self._features = output.detach()

    def start(self) -> None:
        """Start a new interval, which excludes the time of evaluations and checkpoints before it."""
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._images = 0
        self._waited = 0.0
        self._began = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as time spent waiting for data."""
        with Stopwatch() as watch:
            yield
        self._waited += watch.seconds

    def add(self, step: int, scalars: dict[str, Tensor], images: int) -> None:
        """Add the detached scalars of one step."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        first_bad = (self._bad_step < 0) & ~torch.isfinite(scalars["loss"])
        self._bad_step = torch.where(first_bad, step, self._bad_step)
        self._count += 1
        self._images += images
        self._step = step

    @property
    def pending(self) -> bool:
        """True if steps have been added since the last reading."""
        return self._count > 0

    def read(self, run: "Run", lr: float, epoch: float) -> dict[str, Any]:
        """Return the means since the last reading, over all processes, and start a new interval.

        All processes must call it after the same step. Raises UserError if a loss was not finite.
        """
        self.stop_if_not_finite(run)
        totals = distributed.mean(torch.stack([value.float() for value in self._sums.values()]))
        means = dict(zip(self._sums, (totals / self._count).tolist()))
        elapsed = time.perf_counter() - self._began
        self._seconds += elapsed
        record = {
            "step": self._step,
            "epoch": round(epoch, 4),
            "seconds": self._seconds,
            **means,
            "lr": lr,
            "images_per_second": self._images / elapsed,
            "data_wait": self._waited / elapsed,
            "memory_gib": peak_memory(self._device),
            **self._health(),
        }
        self.start()
        return {k: _plain(v) for k, v in record.items()}

    def stop_if_not_finite(self, run: "Run") -> None:
        """Raise UserError naming the first step whose loss was not finite, before its weights are saved."""
        step = distributed.largest(int(self._bad_step))
        if step >= 0:
            saved = run.checkpoints
            raise UserError(
                f"the loss is not finite since step {step}; last good checkpoint: "
                f"{saved[-1] if saved else 'none yet'}. Try a lower optimizer.lr, optimizer.clip_grad=1, "
                f"a longer optimizer.warmup_epochs, or precision=fp32"
            )

    def _health(self) -> dict[str, float]:
        if self._features is None:
            return {}
        features = self._features.float().flatten(1)
        return {
            "feature_std": float(feature_std(features)),
            "effective_rank": float(effective_rank(features)),
        }


def _plain(value: Any) -> Any:
    """Round floats to six digits; None for NaN and infinities, which JSON lacks."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
