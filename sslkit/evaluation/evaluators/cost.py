"""Cost of using the backbone: parameters, arithmetic, time on this machine, and size on disk."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from sslkit.backbones.flops import _flops_or_none, flops
from sslkit.evaluation.evaluator import Evaluator
from sslkit.evaluation.subject import Subject
from sslkit.machine.environment import device_name
from sslkit.machine.stopwatch import Stopwatch
from sslkit.nn.modes import eval_mode

REFERENCE = 224
"""The image size at which the literature reports FLOPs."""


class Cost(Evaluator):
    """Parameters, FLOPs, latency and images per second on this machine, size on disk; needs no labels.

    gmacs: 10⁹ multiply-adds per image, which most papers (Sonawane et al. 2021, Table 1, among them) call FLOPs;
    gflops: 10⁹ FLOPs, two per multiply-add. Convolutions, linear layers and attention are counted, nothing else.
    """

    class Config(Evaluator.Config):
        batch_sizes: tuple[int, ...] = (1, 64)
        """Batch sizes whose speed is measured."""
        repeats: int = Field(30, ge=1)
        """Timed passes for each batch size; the result is their median."""
        warmup: int = Field(5, ge=1)
        """Passes before the timed ones."""
        seconds: float = Field(5.0, gt=0)
        """Time limit for each batch size: a slow network is timed less often, but at least three times."""

    config: Config
    needs_labels: ClassVar[bool] = False
    varies: ClassVar[tuple[str, ...]] = ("latency_ms", "images_per_second")
    """Prefixes of the figures that are times, and so differ between runs."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._passes: list[str] = []
        self._setting = ""

    @property
    def protocol(self) -> str:
        timed = ", ".join(self._passes) or f"up to {self.config.repeats} passes"
        return f"FLOPs of one image (2 a multiply-add), here and at {REFERENCE} px; median of {timed}{self._setting}"

    def __call__(self, subject: Subject) -> dict[str, float]:
        net, device = subject.backbone, subject.device
        size = subject.image_size
        figures: dict[str, float] = {
            "parameters": sum(p.numel() for p in net.parameters()),
            "megabytes": megabytes(net),
        }
        for name, counted in (("", flops(net, size)), (f"_{REFERENCE}", _flops_or_none(net, REFERENCE))):
            if counted is not None:
                figures |= {f"gflops{name}": counted / 1e9, f"gmacs{name}": counted / 2e9}
        self._passes.clear()
        for batch_size in self.config.batch_sizes:
            seconds = self._seconds(net, batch_size, size, getattr(subject, "autocast", None), device)
            figures[f"latency_ms_{batch_size}"] = 1000 * seconds
            figures[f"images_per_second_{batch_size}"] = batch_size / seconds
        kind = getattr(net, "stem_kind", "imagenet")
        stem = "" if kind == "imagenet" else f", {kind} stem"
        self._setting = f" at {size} px on {device_name(device)}{stem}"
        return figures

    def _seconds(self, net: nn.Module, n: int, size: int, autocast: Any, device: torch.device) -> float:
        """Median time of one pass of n images, in seconds."""
        images = torch.zeros(n, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

        def once() -> None:
            with torch.autocast(device.type, autocast) if autocast else nullcontext():
                net(images)

        with eval_mode(net), torch.no_grad():
            times = timings(once, device, self.config.warmup, self.config.repeats, self.config.seconds)
        self._passes.append(f"{len(times)} passes of {n}")
        return median(times)


def megabytes(net: nn.Module) -> float:
    """Size of the weights file without its header, in units of 10⁶ bytes."""
    number: float = sum(t.numel() * t.element_size() for t in net.state_dict().values()) / 1e6
    return number


def timings(once: Callable[[], Any], device: torch.device, warmup: int, repeats: int, seconds: float) -> list[float]:
    """Time each call after the first `warmup`, in seconds: `repeats` of them, or fewer (but three) when time is up."""
    start = time.perf_counter()
    for _ in range(warmup):
        _timed(once, device)
        if time.perf_counter() - start > seconds / 2:
            break
    times: list[float] = []
    while len(times) < min(3, repeats) or (len(times) < repeats and time.perf_counter() - start < seconds):
        times.append(_timed(once, device))
    return times


def _timed(once: Callable[[], Any], device: torch.device) -> float:
    with Stopwatch(device) as watch:
        once()
    return watch.seconds
