"""Barlow Twins: drive the cross-correlation of two views' embeddings towards the identity matrix."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.methods import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit.nn.health import feature_std
from sslkit_redundancy.losses import cross_correlation, redundancy_reduction


class BarlowTwins(Method):
    """Make embedding dimensions agree between views and decorrelate, without negatives (Zbontar et al. 2021).

    Barlow Twins: Self-Supervised Learning via Redundancy Reduction, arXiv:2103.03230, Algorithm 1, with BYOL's
    augmentation (Section 2.2). Each view passes through the network separately, as in the official code. The loss
    grows with `dim`, so `redundancy_weight` may need another value when `dim` is changed.
    """

    class Config(Method.Config):
        redundancy_weight: float = Field(default=0.005, ge=0)
        """λ of Eq. 1: weight of the correlations between different dimensions."""
        hidden: int = Field(default=8192, ge=1)
        """Width of the head's two hidden layers; 2048 suits small GPUs, as 8192 costs 67 million weights per layer."""
        dim: int = Field(default=8192, ge=1)
        """D: width of the embedding; the paper's accuracy grows with it up to 16384 (Figure 4)."""

    augment: ClassVar[str] = "byol"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "lars",
        "optimizer.lr": 0.2,
        "optimizer.exempt_lr": 0.0048,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1.5e-6,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 10,
    }

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {"method.hidden": task.when_short(1024, 8192), "method.dim": task.when_short(1024, 8192)}

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.projector = mlp(self.width, config.hidden, config.hidden, config.dim, last_bias=False)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"z": [B, 2, dim]}, the embeddings of both views."""
        self.expect_views(batch, 2)
        return {"z": torch.stack([self.projector(self.backbone(view)) for view in batch.views.chunk(2)], dim=1)}

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss and scalars that show how it is met.

        on_diagonal: mean correlation of a dimension between the views, which rises to 1.
        off_diagonal: root mean square correlation of different dimensions, which falls to 0.
        embedding_std: `feature_std` of the first view's embeddings.
        """
        z0, z1 = embeddings["z"].unbind(1)
        diagonal, off_diagonal = cross_correlation(z0, z1)
        pairs = max(1, z0.shape[1] * (z0.shape[1] - 1))
        return {
            "loss": redundancy_reduction(diagonal, off_diagonal, self.config.redundancy_weight),
            "on_diagonal": diagonal.detach().mean(),
            # Rounding may leave the sum of squares slightly below zero.
            "off_diagonal": (off_diagonal.detach().clamp_min(0) / pairs).sqrt(),
            "embedding_std": feature_std(z0),
        }
