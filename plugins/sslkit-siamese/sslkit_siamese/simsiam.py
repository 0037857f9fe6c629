"""SimSiam: predict the other view's embedding with stop-gradient, which alone prevents collapse."""

from itertools import permutations
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.methods import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit.nn.health import feature_std
from sslkit_siamese.losses import negative_cosine


class SimSiam(Method):
    """Predict the other view's embedding with stop-gradient; no negatives, no momentum encoder (Chen and He 2021).

    Exploring Simple Siamese Representation Learning, arXiv:2011.10566: Algorithm 1, symmetric loss of Eq. 4, MoCo
    v2's augmentation. The projection head's last batch norm neither scales nor shifts, as in the official code, which
    also passes each view through the network separately. The predictor keeps its peak learning rate (Table 1). Small
    networks collapse easily: watch `output_std`.
    """

    class Config(Method.Config):
        hidden: int = Field(default=2048, ge=1)
        """Width of the projection head's hidden layers."""
        dim: int = Field(default=2048, ge=1)
        """d: width of embedding and prediction."""
        bottleneck: int = Field(default=512, ge=1)
        """Width of the predictor's hidden layer, a quarter of dim in the paper."""
        layers: int = Field(default=3, ge=1)
        """Layers of the projection head; the paper uses 2 on CIFAR-10 (Appendix D)."""

    augment: ClassVar[str] = "mocov2"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "sgd",
        "optimizer.lr": 0.05,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1e-4,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 0,
    }
    constant_lr: ClassVar[tuple[str, ...]] = ("predictor",)

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {
            "optimizer.name": Fitted("sgd", "the paper's"),
            "optimizer.lr": task.when_short(0.1, 0.05),
            "optimizer.lr_scaling": task.when_short("none", "linear"),
            "method.hidden": task.when_short(512, 2048),
        }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        hidden = [config.hidden] * (config.layers - 1)
        self.projector = nn.Sequential(
            *mlp(self.width, *hidden, config.dim, last_bias=False), nn.BatchNorm1d(config.dim, affine=False)
        )
        self.predictor = mlp(config.dim, config.bottleneck, config.dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss, -1 to 1, and `output_std`: `feature_std` of the embeddings (Figure 2), 0 when collapsed."""
        self.expect_views(batch, 2, or_more=True)
        z = [self.projector(self.backbone(view)) for view in batch.views.chunk(batch.n_views)]
        p = [self.predictor(projection) for projection in z]
        directions = [negative_cosine(p[i], z[j]) for i, j in permutations(range(batch.n_views), 2)]
        return {"loss": torch.stack(directions).mean(), "output_std": feature_std(z[0])}
