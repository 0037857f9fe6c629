"""The contract of a method: a module whose `forward` turns a batch of views into a loss."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sslkit.config import Config


@dataclass(frozen=True)
class RunInfo:
    """What a method may need to know of the run before it builds its parts."""

    images: int
    """Number of images to pre-train on (memory banks need one row each)."""
    classes: int
    """Number of classes; 0 where the data has no labels."""
    image_size: int
    """Height and width of a view, in pixels."""


@dataclass
class Batch:
    """One step's views of B images, on the device."""

    crops: list[Tensor]
    """One stacked float tensor [V*B, 3, h, w] a resolution (multi-crop has two), view blocks in order."""
    indices: Tensor
    """Stable image numbers, int64 [B]."""
    labels: Tensor | None = None
    """Class numbers, int64 [B]; None unless the method sets `uses_labels`."""

    @property
    def views(self) -> Tensor:
        """The full-size crops, [V*B, 3, h, w]; view i is `views.chunk(n_views)[i]`."""
        return self.crops[0]

    @property
    def n_views(self) -> int:
        """V, the number of full-size views of every image."""
        return len(self.crops[0]) // len(self.indices)


class Method(nn.Module):
    """Base of every method. The engine owns optimizer, schedule, precision, distribution and checkpoints."""

    class Config(Config):
        """What `method.<field>=` accepts."""

    augment: ClassVar[str] = "simclr"
    """The view recipe it wants unless the user names another."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Run settings that its paper asks for, as dotted keys: {"optimizer.name": "lars"}."""
    uses_labels: ClassVar[bool] = False
    """Labels are withheld from `forward` unless this is True."""

    def __init__(self, config: Any, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.info = info

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"loss": scalar with a graph, and detached scalars worth logging}."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def after_step(self, progress: float) -> None:
        """Called after every optimizer step: momentum encoders, queues, banks. `progress` runs from 0 to 1."""
