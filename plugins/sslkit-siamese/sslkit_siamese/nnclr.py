"""NNCLR: contrast with the nearest neighbour among earlier images in place of the view itself."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.methods import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit.nn.losses import contrastive_health
from sslkit.nn.queues import Queue
from sslkit_siamese.losses import nearest, neighbour_cross_entropy, neighbour_logits, own


class NNCLR(Method):
    """Contrast a view with the nearest earlier image to the other view (Dwibedi et al. 2021).

    With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations,
    arXiv:2104.14548: Algorithm 1, the loss in both directions. The support set is a queue of the first
    view's embeddings, initialised at random. Other images serve as positives, so the views need less distortion;
    negatives come from the batch, so large batches help.
    """

    class Config(Method.Config):
        queue: int = Field(default=98304, ge=1)
        """Size of the support set Q; well below the number of images, or many neighbours are the image itself."""
        temperature: float = Field(default=0.1, gt=0)
        """τ of the softmax."""
        hidden: int = Field(default=2048, ge=1)
        """Width of the projection head's two hidden layers."""
        dim: int = Field(default=256, ge=1)
        """d: width of embedding and prediction."""
        predictor_hidden: int = Field(default=4096, ge=1)
        """Width of the predictor's hidden layer."""

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
        return {
            "method.queue": task.queue(98304),
            "method.temperature": task.when_short(0.2, 0.1),
            "method.predictor_hidden": task.when_short(1024, 4096),
        }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.projector = nn.Sequential(
            *mlp(self.width, config.hidden, config.hidden, config.dim, last_bias=False), nn.BatchNorm1d(config.dim)
        )
        self.predictor = mlp(config.dim, config.predictor_hidden, config.dim)
        self.queue = Queue(config.queue, config.dim)
        self._new_rows: list[Tensor] = []

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return embeddings "z", without a graph, and predictions "p", [B, 2, dim] each."""
        self.expect_views(batch, 2)
        z = [self.projector(self.backbone(view)) for view in batch.views.chunk(2)]
        p = [self.predictor(projection) for projection in z]
        return {"z": torch.stack(z, dim=1).detach(), "p": torch.stack(p, dim=1)}

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss, `contrastive_health` of one direction, and the state of neighbours and queue.

        neighbour_similarity: mean cosine of a view and its neighbour.
        neighbour_agreement: share of images whose two views have the same neighbour; it rises from near 0.
        neighbours_distinct: number of different rows among the neighbours, over N; 1/N when collapsed.
        queue_filled, queue_age: see `sslkit.nn.queues.Queue.health`.
        """
        z = embeddings["z"].detach().unbind(1)
        p = embeddings["p"].unbind(1)
        self._new_rows.append(z[0])
        nearest_rows = [nearest(view, self.queue.rows) for view in z]
        neighbours = [self.queue.rows[rows] for rows in nearest_rows]
        temperature = self.config.temperature
        logits = [neighbour_logits(n, other, temperature) for n, other in zip(neighbours, reversed(p))]
        return {
            "loss": torch.stack([neighbour_cross_entropy(each) for each in logits]).mean(),
            **contrastive_health(logits[0].detach(), temperature, positives=own(logits[0])),
            "neighbour_similarity": torch.cosine_similarity(z[0].float(), neighbours[0].float()).mean(),
            "neighbour_agreement": (nearest_rows[0] == nearest_rows[1]).float().mean(),
            "neighbours_distinct": _distinct(nearest_rows[0]),
            **self.queue.health(),
        }

    def after_step(self, progress: float) -> None:
        """Push the first view's embeddings of the step into the queue."""
        self.queue.push(torch.cat(self._new_rows))
        self._new_rows.clear()


def _distinct(numbers: Tensor) -> Tensor:
    """Share of distinct values among numbers [N], without torch.unique, which would synchronise with the device."""
    ordered = numbers.sort().values
    return ((ordered.diff() != 0).sum() + 1) / len(numbers)
