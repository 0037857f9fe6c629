"""SimCLR: identify the other view of an image among all views of the batch."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.methods.base import Batch, Method, RunInfo
from sslkit.nn.heads import ACTIVATIONS, mlp
from sslkit.nn.losses import pair_cross_entropy, pair_health, pair_logistic, pair_loss, pair_margin


class SimCLR(Method):
    """Contrast two views of an image with all other images of the batch (Chen et al. 2020).

    A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709: Algorithm 1, loss
    of Eq. 1 (NT-Xent). Both views pass through the network as one batch of 2N, as in the official code, so batch norm
    mixes them. The projection head is g(h) = W2·ReLU(W1·h) (Section 2.1) with batch norm after each of its
    layers as in the official code; `norm=false` gives the plain formula. The larger the batch, the
    more negatives. The other settings are the paper's ablations: losses (Tables 2 and 4), normalisation (Table 5)
    and heads (Figure 8).
    """

    class Config(Method.Config):
        loss: Literal["nt_xent", "nt_logistic", "margin"] = "nt_xent"
        """The loss, a row of Table 2; the paper finds nt_xent the best by far (Table 4)."""
        temperature: float = Field(default=0.5, gt=0)
        """τ of Eq. 1; the paper's best is 0.1 on ImageNet (Table 5) and 0.5 on CIFAR-10 (B.9). Unused by margin."""
        margin: float = Field(default=0.4, ge=0)
        """m of the margin loss, unused by the others; the paper tried 0, 0.4, 0.8 and 1.6 (B.10)."""
        semi_hard: bool = False
        """nt_logistic and margin: keep only the closest negative that is farther than the positive (5.1)."""
        both_views: bool = True
        """Use both views of the other images as negatives; off: those of the other branch, as in Table 4."""
        normalize: bool = True
        """Compare by cosine similarity; off: by the dot product, as in the lower half of Table 5."""
        head: Literal["mlp", "linear", "identity"] = "mlp"
        """Projection head between backbone and loss (Figure 8)."""
        hidden: int | None = Field(default=None, ge=1)
        """Width of the mlp head's hidden layer; null: the width of the features, as in the paper."""
        dim: int = Field(default=128, ge=1)
        """Width of the embedding z; the paper found little difference from 32 to 2048 (Figure 8)."""
        norm: bool = True
        """Batch norm in the head."""
        activation: Literal["relu", "hardswish"] = "relu"
        """Non-linearity of the mlp head; hardswish suits MobileNetV3."""
        dropout: float = Field(default=0.0, ge=0, lt=1)
        """Dropout probability of the mlp head's hidden units."""

        @model_validator(mode="after")
        def _only_what_it_mines(self) -> Self:
            if self.semi_hard and self.loss == "nt_xent":
                raise ValueError(
                    "semi_hard picks negatives for losses that do not weigh them by their hardness, and nt_xent does; "
                    "set loss to nt_logistic or margin, or semi_hard=false"
                )
            return self

    augment: ClassVar[str] = "simclr"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "lars",
        "optimizer.lr": 0.3,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1e-6,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 10,
    }

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {"method.temperature": task.when_short(0.2, 0.5)}

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        width = self.width
        dims = {"mlp": (width, config.hidden or width, config.dim), "linear": (width, config.dim), "identity": (width,)}
        self.head = mlp(
            *dims[config.head],
            norm=config.norm,
            activation=ACTIVATIONS[config.activation],
            dropout=config.dropout,
            last_norm=config.norm,
        )

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"z": [B, 2, dim]}, the embeddings of both views."""
        self.expect_views(batch, 2)
        return {"z": batch.by_image(self.head(self.backbone(batch.views)))}

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss, and `contrastive_health` of the whole batch."""
        z0, z1 = embeddings["z"].unbind(1)
        c = self.config
        options = {
            "temperature": 1.0 if c.loss == "margin" else c.temperature,
            "normalize": c.normalize,
            "both_views": c.both_views,
        }
        return {"loss": pair_loss(self._of_rows, z0, z1, **options), **pair_health(z0, z1, **options)}

    def _of_rows(self, logits: Tensor, partners: Tensor) -> Tensor:
        c = self.config
        if c.loss == "margin":
            return pair_margin(logits, partners, c.margin, c.semi_hard)
        if c.loss == "nt_logistic":
            return pair_logistic(logits, partners, c.semi_hard)
        return pair_cross_entropy(logits, partners)
