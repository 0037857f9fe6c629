"""The contract of a method: a module whose `forward` turns a batch of views into a loss."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sslkit.backbones.backbone import width_of
from sslkit.config.base import Choice, Config
from sslkit.config.task import Fitted, Task
from sslkit.errors import UserError
from sslkit.machine.distributed import gather

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class RunInfo:
    """Facts about the run that a method may need to build its modules."""

    images: int
    """Number of images to pre-train on (memory banks need one row each)."""
    classes: int
    """Number of classes; 0 if the data has no labels."""
    image_size: int
    """Height and width of a view, in pixels."""
    mean: Triple = (0.485, 0.456, 0.406)
    """Mean of each channel that is subtracted from images in 0..1 to make views."""
    std: Triple = (0.229, 0.224, 0.225)
    """Standard deviation that each channel is then divided by."""


@dataclass
class Batch:
    """One step's views of B images, on the device."""

    crops: list[Tensor]
    """One stacked float tensor [V*B, 3, h, w] per resolution (multi-crop has two), in blocks of views."""
    indices: Tensor
    """Image numbers, int64 [B], the same in every epoch."""
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
        """Group a network's outputs by image, [V*B, ...] -> [B, V, ...]: the form that `Method.embed` returns."""
        out: Tensor = rows.unflatten(0, (-1, len(self.indices))).transpose(0, 1)
        return out


class Method(nn.Module):
    """Base of every method. The engine owns optimizer, schedule, precision, distribution and checkpoints.

    A subclass defines either `forward`, if the loss is a mean over images, or `embed` and `loss`, if the
    loss compares the images of a batch with each other or stores something of every image (queue, memory bank).
    Then `loss` sees the whole batch, however many processes and micro-batches it is split into.
    """

    class Config(Config):
        """Settings of a method, given as `method.<field>=`."""

    augment: ClassVar[str] = "simclr"
    """Name of the augmentation used unless the user names another."""
    defaults: ClassVar[dict[str, Any]] = {}
    """Run settings that the paper uses, as dotted keys: {"optimizer.name": "lars"}; recipes build on them."""
    uses_labels: ClassVar[bool] = False
    """True if the method uses labels, which are otherwise withheld."""
    constant_lr: ClassVar[tuple[str, ...]] = ()
    """Submodules (attribute names) whose learning rate stays at its peak while that of the others falls."""
    sync_batchnorm: ClassVar[bool] = True
    """True if batch norm on several GPUs uses the statistics of all their images."""
    width: int
    """Width of the backbone's features, [N, width]."""

    def __init__(self, config: Any, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.info = info
        self.width = width_of(backbone)

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        """Return the settings, by dotted key, that the method wants where no recipe is named.

        They take precedence over the general rules (docs/auto-settings.md). By default these are `defaults`, whatever
        the task; a method that overrides this names what follows from the task, such as
        {"method.queue": task.queue(65536)}, and {} leaves everything to the general rules.
        """
        return {key: Fitted(value, "the method's own setting") for key, value in cls.defaults.items()}

    @classmethod
    def trained_backbone(cls, backbone: Choice) -> Choice:
        """Return the backbone to build if the user names `backbone`; another one if a method trains a compound."""
        return backbone

    @property
    def exported(self) -> nn.Module:
        """The backbone that is evaluated and saved; the momentum encoder's, if the paper evaluates that."""
        return self.backbone

    def expect_views(self, batch: Batch, number: int, or_more: bool = False) -> None:
        """Raise UserError unless the augmentation makes this number of full-size views per image."""
        n_views = batch.n_views
        if n_views < number or (n_views > number and not or_more):
            needed = f"{number} view{'s' if number > 1 else ''} of an image"
            raise UserError(
                f"{type(self).__name__} needs {needed}, but the augmentation makes {n_views}; "
                f"set augment.views={number}"
            )

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the loss needs of each image: tensors [B, ...], the image first (see `Batch.by_image`).

        Called twice for the same images if the batch is split into micro-batches, so it must change nothing but
        batch-norm statistics.
        """
        raise UserError(f"{type(self).__name__} defines neither forward nor embed; a method needs one of them")

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return as `forward` does, given `embed` of the whole batch: all micro-batches, gathered from all processes.

        Called several times per optimizer step if `accumulate` is set, so what `after_step` needs is to be
        collected here, and cleared there.
        """
        raise UserError(f"{type(self).__name__} defines embed, but no loss; a method needs both")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss": scalar with a graph, and detached scalars worth logging}."""
        return self.loss({name: gather(rows) for name, rows in self.embed(batch).items()})

    def after_step(self, progress: float) -> None:
        """Update momentum encoders, queues, memory banks after every optimizer step; `progress` runs from 0 to 1."""
