"""The contract of a method: a module whose `forward` turns a batch of views into a loss."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sslkit.backbones.backbone import width_of
from sslkit.config.base import Choice, Config
from sslkit.errors import UserError
from sslkit.machine.distributed import gather

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class RunInfo:
    """What a method may need to know of the run before it builds its setup."""

    images: int
    """Number of images to pre-train on (memory banks need one row each)."""
    classes: int
    """Number of classes; 0 where the data has no labels."""
    image_size: int
    """Height and width of a view, in pixels."""
    mean: Triple = (0.485, 0.456, 0.406)
    """What is subtracted from each channel of images in 0..1 to make views."""
    std: Triple = (0.229, 0.224, 0.225)
    """What each channel is divided by then."""


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

    def by_image(self, rows: Tensor) -> Tensor:
        """What a network made of stacked views, [V*B, ...] -> [B, V, ...]: the form that `Method.embed` returns."""
        out: Tensor = rows.unflatten(0, (-1, len(self.indices))).transpose(0, 1)
        return out


class Method(nn.Module):
    """Base of every method. The engine owns optimizer, schedule, precision, distribution and checkpoints.

    A subclass defines either `forward`, where the loss is a mean over images, or `embed` and `loss`, where the
    loss compares the images of a batch with each other or keeps something of every image (a queue, a bank).
    Then `loss` sees the whole batch, however many processes and micro-batches it came in.
    """

    class Config(Config):
        """What `method.<field>=` accepts."""

    augment: ClassVar[str] = "simclr"
    """The view recipe it wants unless the user names another."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Run settings that its paper asks for, as dotted keys: {"optimizer.name": "lars"}."""
    uses_labels: ClassVar[bool] = False
    """Labels are withheld unless this is True."""
    constant_lr: ClassVar[tuple[str, ...]] = ()
    """TrainingSetup (attribute names) whose learning rate stays at its peak while the others' falls."""
    sync_batchnorm: ClassVar[bool] = True
    """Whether batch norm on several GPUs sees all their images."""
    width: int
    """Width of the backbone's features, [N, width]."""

    def __init__(self, config: Any, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.info = info
        self.width = width_of(backbone)

    @classmethod
    def trained_backbone(cls, backbone: Choice) -> Choice:
        """The backbone to build where the user names `backbone`; another one where a method trains a compound."""
        return backbone

    @property
    def exported(self) -> nn.Module:
        """The backbone that is evaluated and saved; a slow copy of it, where the paper evaluates that."""
        return self.backbone

    def expect_views(self, batch: Batch, number: int, or_more: bool = False) -> None:
        """Raise UserError unless the recipe makes so many full-size views of an image."""
        made = batch.n_views
        if made < number or (made > number and not or_more):
            views = f"{number} view{'s' if number > 1 else ''} of an image"
            raise UserError(
                f"{type(self).__name__} needs {views}, but the recipe makes {made}; set augment.views={number}"
            )

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """What the loss needs of each image: tensors [B, ...], the image first (see `Batch.by_image`).

        Run twice for the same images where the batch comes in micro-batches, so it must change nothing but
        batch-norm statistics.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither forward nor embed")

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `forward`, of what `embed` made of the whole batch: of all micro-batches, gathered from all processes.

        Called several times an optimizer step where `accumulate` asks for it: what `after_step` needs is to be
        collected, and cleared there.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"loss": scalar with a graph, and detached scalars worth logging}."""
        return self.loss({name: gather(rows) for name, rows in self.embed(batch).items()})

    def after_step(self, progress: float) -> None:
        """Called after every optimizer step: momentum encoders, queues, banks. `progress` runs from 0 to 1."""
