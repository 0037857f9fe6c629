"""LeJEPA: predict the mean embedding of an image's views, with embeddings that follow a standard Gaussian."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.machine.distributed import shared
from sslkit.methods import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit_fewsteps.losses import lejepa_sum, lejepa_terms, random_directions


class LeJEPA(Method):
    """Make views predict their mean and the embeddings Gaussian; one trade-off (Balestriero and LeCun 2025).

    LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, arXiv:2511.08544: Algorithms 1
    and 2, with the quadrature and the projector of the official code. No stop-gradient, no momentum encoder, no
    predictor. All full-size views pass through the network as one batch. Small views (`augment=dino` of
    sslkit-clustering) predict the mean of the full-size ones.
    """

    class Config(Method.Config):
        sigreg_weight: float = Field(default=0.05, gt=0, lt=1)
        """λ: weight of the Gaussian regularisation, against 1 - λ of the prediction; the paper recommends 0.05."""
        directions: int = Field(default=256, ge=1)
        """M: random directions of each step; Algorithm 1 has 256, and 1024 help a little (Table 1a)."""
        hidden: int = Field(default=2048, ge=1)
        """Width of the projector's two hidden layers."""
        dim: int = Field(default=128, ge=1)
        """K: width of the embedding."""

    augment: ClassVar[str] = "lejepa"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "adamw",
        "optimizer.lr": 2e-3,
        "optimizer.weight_decay": 5e-4,
        "optimizer.warmup_epochs": 1,
    }

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {
            "method.hidden": task.when_short(512, 2048),
            "method.sigreg_weight": task.when_short(0.02, 0.05),
            "epochs": Fitted(max(2, task.epochs // 2), "four views of each image"),
        }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.projector = mlp(self.width, config.hidden, config.hidden, config.dim)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return "global", [B, V, dim], and if there are small views "local", [B, L, dim]."""
        self.expect_views(batch, 2, or_more=True)
        features = [self.backbone(crops) for crops in batch.crops]
        z = batch.by_image(self.projector(torch.cat(features)))
        local = z[:, batch.n_views :]
        return {"global": z[:, : batch.n_views]} | ({"local": local} if local.shape[1] else {})

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss, its two terms, and how widely the embeddings spread.

        prediction: mean square of the distance to the mean of the full-size views, which falls.
        sigreg: statistic of the embeddings, which falls towards 1.05, that of a standard Gaussian; it grows with N.
        embedding_variance: mean variance of the dimensions in the first view, which settles near 1; 0 is collapse.
        """
        z, c = embeddings["global"], self.config
        # The same on all processes, because each computes the loss of the whole batch.
        directions = shared(random_directions(c.dim, c.directions, z.device))
        terms = lejepa_terms(z, embeddings.get("local"), directions)
        return {
            "loss": lejepa_sum(terms, c.sigreg_weight),
            **{name: term.detach() for name, term in terms.items()},
            "embedding_variance": z[:, 0].detach().float().var(0).mean(),
        }
