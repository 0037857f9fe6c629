"""BYOL: predict a momentum encoder's projection of another view."""

from collections.abc import Callable
from itertools import permutations
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.methods.base import Batch, Method, RunInfo
from sslkit.nn import losses
from sslkit.nn.heads import mlp
from sslkit.nn.health import feature_std
from sslkit.nn.momentum import cosine_momentum, ema_update, momentum_encoder


class BYOL(Method):
    """Predict a momentum encoder's projection of the other view; no negatives (Grill et al. 2020).

    Bootstrap Your Own Latent, arXiv:2006.07733: loss of Eq. 2, made symmetric as in 3.1; target ξ ← τξ +
    (1-τ)θ (Eq. 1), τ from `momentum` to 1 by the cosine of 3.3. Projection head q and predictor g are
    Linear-BN-ReLU-Linear, the last without bias, as in the reference code, which also passes each view
    through the networks separately, so that batch norm never mixes views; the target keeps its own batch-norm
    statistics. `momentum` 0.996 suits 1000 epochs, 0.99 suits 300 (Appendix F.2).
    """

    class Config(Method.Config):
        momentum: float = Field(default=0.996, ge=0, le=1)
        """τ_base: the target's momentum at the start; it rises to 1."""
        hidden: int = Field(default=4096, ge=1)
        """Width of the hidden layer of projection head and predictor."""
        dim: int = Field(default=256, ge=1)
        """Width of projection and prediction."""
        last_norm: bool = False
        """Batch norm on the projection too, as in MoCo v3 (Chen et al. 2021); guards short runs against collapse."""
        joint_views: bool = False
        """Pass all views through the networks as one batch: faster, but batch norm then mixes them."""

    augment: ClassVar[str] = "byol"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "lars",
        "optimizer.lr": 0.2,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1.5e-6,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 10,
    }

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {
            "method.momentum": task.momentum(0.996),
            "method.hidden": task.when_short(1024, 4096),
            "method.last_norm": task.when_short(True, False),
            "optimizer.name": Fitted("lars", "BYOL collapses with AdamW"),
            "optimizer.lr": task.when_short(2.0, 0.2),
            "optimizer.lr_scaling": task.when_short("none", "linear"),
            "optimizer.weight_decay": Fitted(1.5e-6, "the paper's"),
        }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.projector = mlp(self.width, config.hidden, config.dim, last_bias=False, last_norm=config.last_norm)
        self.predictor = mlp(config.dim, config.hidden, config.dim, last_bias=False)
        self.target = momentum_encoder(self._online())

    def _online(self) -> nn.Sequential:
        # Built on demand: a stored module would register the backbone a second time.
        return nn.Sequential(self.backbone, self.projector)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.expect_views(batch, 2, or_more=True)
        predictions = self._each_view(self._predict, batch)
        with torch.no_grad():
            targets = self._each_view(self.target, batch)
        pairs = permutations(range(batch.n_views), 2)
        directions = [losses.byol(predictions[i], targets[j]) for i, j in pairs]
        # Twice the mean is the sum of the two directions, and does not grow with additional views.
        return {"loss": 2 * torch.stack(directions).mean(), "target_std": feature_std(targets[0])}

    def _predict(self, views: Tensor) -> Tensor:
        out: Tensor = self.predictor(self.projector(self.backbone(views)))
        return out

    def _each_view(self, network: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, ...]:
        if self.config.joint_views:
            return network(batch.views).chunk(batch.n_views)
        return tuple(network(view) for view in batch.views.chunk(batch.n_views))

    def after_step(self, progress: float) -> None:
        ema_update(self.target, self._online(), cosine_momentum(self.config.momentum, progress))
