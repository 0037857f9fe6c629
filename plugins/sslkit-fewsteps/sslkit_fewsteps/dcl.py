"""DCL and DCLW: SimCLR whose loss compares each view with negatives alone, which suits small batches."""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from sslkit.methods import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit.nn.losses import pair_health
from sslkit_fewsteps.losses import dcl, dclw, positive_weights


class DCL(Method):
    """SimCLR without the positive in the loss's denominator, for small batches (Yeh et al. 2022).

    Decoupled Contrastive Learning, arXiv:2110.06848: in NT-Xent a view whose positive is already near gets little
    gradient, and the fewer negatives there are, the sooner; without the positive in the denominator this
    coupling is gone. Everything else is as in SimCLR: both views as one batch, the same head, with batch norm.
    """

    class Config(Method.Config):
        temperature: float = Field(default=0.2, gt=0)
        """τ of the loss; 0.2 and 0.5 learned faster than 0.1, lightly's default, in 180 steps (benchmarks/LOG.md)."""
        hidden: int | None = Field(default=None, ge=1)
        """Width of the projection head's hidden layer; null: the width of the features."""
        dim: int = Field(default=128, ge=1)
        """Width of the embedding z."""

    augment: ClassVar[str] = "simclr"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "adamw",
        "optimizer.lr": 2e-3,
        "optimizer.weight_decay": 1e-4,
        "optimizer.warmup_epochs": 1,
    }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.head = mlp(self.width, config.hidden or self.width, config.dim, last_norm=True)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"z": [B, 2, dim]}, the embeddings of both views."""
        self.expect_views(batch, 2)
        return {"z": batch.by_image(self.head(self.backbone(batch.views)))}

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss, and `contrastive_health` of the whole batch."""
        z0, z1 = embeddings["z"].unbind(1)
        temperature = self.config.temperature
        return {"loss": dcl(z0, z1, temperature), **pair_health(z0, z1, temperature)}


class DCLW(DCL):
    """DCL that weighs an image's positive pair the more, the less alike its views are (Yeh et al. 2022).

    The von Mises-Fisher weighting of Decoupled Contrastive Learning, arXiv:2110.06848. The weights carry no gradient.
    """

    class Config(DCL.Config):
        temperature: float = Field(default=0.5, gt=0)
        """τ of the loss; 0.5 learned faster than 0.2 in 180 steps (benchmarks/LOG.md)."""
        sigma: float = Field(default=0.5, gt=0)
        """σ of the weights; the larger, the nearer to DCL."""

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return as `DCL.loss` does, and "weight_spread", the standard deviation of the weights, whose mean is 1."""
        z0, z1 = embeddings["z"].unbind(1)
        c = self.config
        return {
            "loss": dclw(z0, z1, c.temperature, c.sigma),
            **pair_health(z0, z1, c.temperature),
            "weight_spread": positive_weights(z0, z1, c.sigma).std(correction=0),
        }
