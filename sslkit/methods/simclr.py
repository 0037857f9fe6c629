"""SimCLR: two views of an image find each other among all views of the batch."""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from sslkit import config
from sslkit.errors import UserError
from sslkit.heads import mlp
from sslkit.losses import contrastive_health, pair_cross_entropy, pair_logits
from sslkit.methods.base import Batch, Method, RunInfo


class SimCLR(Method):
    """Contrast two views of an image with all other images of the batch (Chen et al. 2020).

    A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709: Algorithm 1, loss
    of Eq. 1 (NT-Xent). Both views pass the network as one batch of 2N, as in the official code, so batch norm
    sees them together. The head is g(h) = W2·ReLU(W1·h) (Section 2.1) with batch norm after each of its
    layers as in the official code; `norm=false` gives the formula as it stands. The larger the batch, the
    more negatives.
    """

    class Config(config.Config):
        temperature: float = Field(default=0.5, gt=0)
        """τ of Eq. 1; the paper's best is 0.1 on ImageNet (Table 5) and 0.5 on CIFAR-10 (B.9)."""
        hidden: int | None = Field(default=None, ge=1)
        """Width of the head's hidden layer; null: the backbone's own, as in the paper."""
        dim: int = Field(default=128, ge=1)
        """Width of z, which the loss sees; the paper found little difference from 32 to 2048 (Figure 8)."""
        norm: bool = True
        """Batch norm in the head."""

    augment: ClassVar[str] = "simclr"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "lars",
        "optimizer.lr": 0.3,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1e-6,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 10,
    }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        width: int = backbone.width  # type: ignore[assignment]
        dims = width, config.hidden or width, config.dim
        self.head = mlp(*dims, norm=config.norm, last_norm=config.norm)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if batch.n_views != 2:
            raise UserError(f"simclr needs two views, but the recipe makes {batch.n_views}; set augment.views=2")
        z0, z1 = self.head(self.backbone(batch.views)).chunk(2)
        logits = pair_logits(z0, z1, self.config.temperature)
        return {"loss": pair_cross_entropy(logits), **contrastive_health(logits.detach())}
