"""Supervised training, the reference for self-supervised methods."""

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.config.task import Fitted, Task
from sslkit.errors import UserError
from sslkit.methods.base import Batch, Method, RunInfo

UNKNOWN = -1
"""Label of an image of unknown class, which the loss ignores."""


class Supervised(Method):
    """Train with the labels: the reference for methods without them.

    Cross entropy of a linear layer, averaged over the labelled images of the batch. Learning rate, decay and
    warm-up are those of Goyal et al. 2017 (arXiv:1706.02677, sections 2.1 and 5.1).
    """

    class Config(Method.Config):
        label_smoothing: float = Field(default=0.0, ge=0, lt=1)
        """Share of the target spread over all classes (Szegedy et al. 2016, section 7)."""

    uses_labels: ClassVar[bool] = True
    augment: ClassVar[str] = "weak"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "sgd",
        "optimizer.lr": 0.1,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1e-4,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 5,
    }

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        """Return nothing: the general rules serve a short run better than the paper's settings."""
        return {}

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        if not info.classes:
            raise UserError("supervised needs labels, but the data has no classes; use labelled data or another method")
        self.head = nn.Linear(self.width, info.classes)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        if batch.labels is None:
            raise UserError("supervised needs labels, but the batch has none; use labelled data or another method")
        return {"logits": batch.by_image(self.head(self.backbone(batch.views))), "labels": batch.labels}

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = embeddings["logits"].float()
        labels = embeddings["labels"][:, None].expand(logits.shape[:2])
        logits, labels = logits.flatten(0, 1), labels.flatten()
        known = labels != UNKNOWN
        # A batch without a single label has a loss of 0, not of 0/0.
        count = known.sum().clamp(min=1)
        total = F.cross_entropy(
            logits, labels, ignore_index=UNKNOWN, reduction="sum", label_smoothing=self.config.label_smoothing
        )
        right = (logits.argmax(1) == labels) & known
        return {"loss": total / count, "accuracy": right.sum() / count, "labelled": known.float().mean()}
