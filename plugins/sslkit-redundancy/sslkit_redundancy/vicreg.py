"""VICReg: keep the variance of every embedding dimension up and the covariances down, while views agree."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.methods import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit_redundancy.losses import vicreg_sum, vicreg_terms


class VICReg(Method):
    """Align views, keep every dimension's variance, decorrelate dimensions; no negatives (Bardes et al. 2022).

    Variance-Invariance-Covariance Regularization, arXiv:2105.04906: loss of Eq. 6 with the terms scaled as in
    the official code (invariance averaged over dimensions, variance averaged over views), to which the weights
    belong. Uses BYOL's augmentation. Each view passes through the network separately, as in the official code.
    """

    class Config(Method.Config):
        invariance_weight: float = Field(default=25.0, ge=0)
        """λ: weight of the distance between the views."""
        variance_weight: float = Field(default=25.0, ge=0)
        """μ: weight of the standard deviations below gamma; with 0 the network collapses."""
        covariance_weight: float = Field(default=1.0, ge=0)
        """ν: weight of the covariances between different dimensions."""
        gamma: float = Field(default=1.0, gt=0)
        """γ: target standard deviation of every dimension."""
        eps: float = Field(default=1e-4, gt=0)
        """ε: added to the variance under the square root."""
        hidden: int = Field(default=8192, ge=1)
        """Width of the expander's two hidden layers; 2048 suits small GPUs, 8192 costs 67 million weights per layer."""
        dim: int = Field(default=8192, ge=1)
        """d: width of the embedding."""

    augment: ClassVar[str] = "byol"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "lars",
        "optimizer.lr": 0.2,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1e-6,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 10,
    }

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {"method.hidden": task.when_short(1024, 8192), "method.dim": task.when_short(1024, 8192)}

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.expander = mlp(self.width, config.hidden, config.hidden, config.dim, last_bias=False)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"z": [B, 2, dim]}, the embeddings of both views."""
        self.expect_views(batch, 2)
        return {"z": torch.stack([self.expander(self.backbone(view)) for view in batch.views.chunk(2)], dim=1)}

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss and its three terms, unweighted: a variance term near gamma is collapse, near 0 is health."""
        c = self.config
        z0, z1 = embeddings["z"].unbind(1)
        terms = vicreg_terms(z0, z1, c.gamma, c.eps)
        loss = vicreg_sum(terms, c.invariance_weight, c.variance_weight, c.covariance_weight)
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}
