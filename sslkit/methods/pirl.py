"""PIRL: match an image and a transformed copy to the image's own row in a memory bank of all images."""

from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.config.task import Fitted, Task
from sslkit.machine.distributed import shared
from sslkit.methods.base import Batch, Method, RunInfo
from sslkit.methods.patches import GRID, gap_size, tile_size, tiles
from sslkit.methods.transforms import JIGSAW, check_names, transform
from sslkit.nn.banks import MemoryBank
from sslkit.nn.losses import queue_health, queue_logits


class PIRL(Method):
    """Contrast an image and a transformed copy with a memory bank of all images (Misra & van der Maaten 2020).

    Pretext-Invariant Representation Learning, arXiv:1912.01991: loss of Eq. 5, λ·NCE(m, g) + (1-λ)·NCE(m, f),
    where m is the image's row of the memory bank, f the embedding of the image and g that of its transformed
    copy I^t; NCE is Eq. 4. f is linear; g is linear too, and for the jigsaw linear on each of nine shuffled
    tiles, concatenated and linear again. Transformations can be combined, as Mobile-PIRL proposes. The negatives
    of a step are rows drawn without replacement, the same for all images of the batch, except for an image's own.
    """

    class Config(Method.Config):
        transforms: Annotated[tuple[str, ...], AfterValidator(check_names)] = (JIGSAW,)
        """Transformations that make I^t, in this order but jigsaw last: jigsaw rotation crop flip jitter grayscale blur
        sobel cutout noise solarize."""
        temperature: float = Field(default=0.07, gt=0)
        """τ of Eq. 3."""
        weight: float = Field(default=0.5, ge=0, le=1)
        """λ of Eq. 5: weight of the transformed copy's loss."""
        negatives: int = Field(default=32000, ge=2)
        """N: rows of the memory bank that a step contrasts with; at most as many as there are images."""
        momentum: float = Field(default=0.5, ge=0, lt=1)
        """Weight of a row's old value when its image is seen; the paper's update rate."""
        dim: int = Field(default=128, ge=1)
        """Width of the embedding."""

    augment: ClassVar[str] = "weak"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "sgd",
        "optimizer.lr": 0.03,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1e-4,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 0,
    }

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        """Return nothing: the general rules serve a short run better than the paper's settings."""
        return {}

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.image_head = nn.Linear(self.width, config.dim)
        self.transformed_head: nn.Module = nn.Linear(self.width, config.dim)
        if JIGSAW in config.transforms:
            joined = nn.Linear(GRID**2 * config.dim, config.dim)
            self.transformed_head = nn.Sequential(nn.Linear(self.width, config.dim), nn.Flatten(), joined)
        self.bank = MemoryBank(info.images, config.dim)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return f of the images and g of their transformed copies, [B, dim] each, and the images' numbers."""
        self.expect_views(batch, 1)
        return {
            "image": self.image_head(self.backbone(batch.views)),
            "transformed": self._transformed(batch.views),
            "indices": batch.indices,
        }

    def _transformed(self, views: Tensor) -> Tensor:
        pointwise = [name for name in self.config.transforms if name != JIGSAW]
        views = transform(views, pointwise, self.info.mean, self.info.std)
        if JIGSAW not in self.config.transforms:
            embedded: Tensor = self.transformed_head(self.backbone(views))
            return embedded
        cut = tiles(views, tile_size(views.shape[2]), gap_size(views.shape[2]))
        features = self.backbone(cut.flatten(0, 1)).unflatten(0, cut.shape[:2])
        embedded_tiles: Tensor = self.transformed_head(shuffled(features))
        return embedded_tiles

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of Eq. 5, how well I^t finds its image among negatives, and the state of the memory bank."""
        indices, image = embeddings["indices"], embeddings["image"]
        self._seen.append((indices, image.detach()))
        negatives = shared(self.bank.draw(self.config.negatives))
        own = F.pad(indices[:, None] == negatives, (1, 0))
        of_image, of_copy = (
            queue_logits(z, self.bank.rows[indices], self.bank.rows[negatives], self.config.temperature).masked_fill(
                own, -torch.inf
            )
            for z in (image, embeddings["transformed"])
        )
        return {
            "loss": torch.lerp(nce(of_image), nce(of_copy), self.config.weight),
            **queue_health(of_copy.detach(), self.config.temperature),
            **self.bank.health(),
        }

    def after_step(self, progress: float) -> None:
        """Update the rows of the memory bank of the step's images."""
        indices, rows = (torch.cat(parts) for parts in zip(*self._seen))
        self.bank.update(indices, rows, self.config.momentum)
        self._seen.clear()


def nce(logits: Tensor) -> Tensor:
    """Noise contrastive loss of PIRL (Misra & van der Maaten 2020, Eq. 4): -log h(m) - Σ log(1 - h(m')).

    logits: [N, 1+K], s/τ of the image's own row m (column 0) and of the negatives m', -inf where one is
    excluded. h (Eq. 3) is the softmax over all 1+K: Eq. 3 does not specify how a negative's h is normalised, and this
    is the interpretation in which the h of all candidates sum to 1.
    Returns the mean over rows; (K+1)·log(K+1) - K·log K where all logits are equal.
    """
    log_h = logits.log_softmax(1)
    return -(log_h[:, 0] + _log_rest(logits, log_h)[:, 1:].sum(1)).mean()


def _log_rest(logits: Tensor, log_h: Tensor) -> Tensor:
    """Return log(1 - h), also where h rounds to 1: only the largest can, and there it is the log of the others' sum."""
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
    return torch.log1p(-log_h.exp().scatter(1, top, 0)).scatter(1, top, others)


def shuffled(tiles: Tensor) -> Tensor:
    """Permute each image's rows at random, [N, T, D]; from torch's global generator."""
    order = torch.rand(tiles.shape[:2], device=tiles.device).argsort(1)
    return tiles.gather(1, order[..., None].expand_as(tiles))
