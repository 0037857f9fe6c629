"""SwAV: predict the cluster assignment of one view from other crops, with clusters of equal size."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.methods import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit.nn.queues import Queue
from sslkit_clustering.assignments import Prototypes, sinkhorn, swapped_cross_entropy


class SwAV(Method):
    """Predict the cluster assignment of a view from other crops, without comparing pairs of images (Caron et al. 2020).

    Swapping Assignments between Views, arXiv:2006.09882: swapped prediction (Eq. 2) of the codes of both
    full-size views, which Sinkhorn-Knopp spreads evenly over the prototypes (Eq. 3 to 5), from all other crops
    (Eq. 6). The defaults are the reference code's settings for batches of 256 and 200 epochs.
    """

    class Config(Method.Config):
        prototypes: int = Field(default=3000, ge=2)
        """K: number of prototypes; several times the expected number of classes."""
        temperature: float = Field(default=0.1, gt=0)
        """τ of Eq. 2."""
        epsilon: float = Field(default=0.05, gt=0)
        """ε of Eq. 3; larger values give softer codes."""
        sinkhorn_iterations: int = Field(default=3, ge=1)
        """Iterations of Sinkhorn-Knopp."""
        hidden: int = Field(default=2048, ge=1)
        """Width of the projection head's hidden layer."""
        dim: int = Field(default=128, ge=1)
        """Width of z, the embedding that is compared with the prototypes."""
        queue_length: int = Field(default=3840, ge=0)
        """Earlier embeddings of each view that join the computation of codes, for batches smaller than K; 0: none."""
        queue_start: float = Field(default=0.075, ge=0, le=1)
        """Share of the run after which the queue is filled; 15 of 200 epochs."""
        freeze_prototypes: float = Field(default=0.005, ge=0, le=1)
        """Share of the run during which the prototypes are frozen; 1 of 200 epochs."""

    augment: ClassVar[str] = "swav"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "lars",
        "optimizer.lr": 0.6,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1e-6,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 0,
    }
    progress: Tensor

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {
            "method.prototypes": task.prototypes(min(3000, max(16, task.batch_size // 2))),
            "method.queue_length": Fitted(0, "a batch has twice as many images as there are prototypes"),
        }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.projector = mlp(self.width, config.hidden, config.dim)
        self.prototypes = Prototypes(config.dim, config.prototypes)
        queues = 2 if config.queue_length else 0
        self.queues = nn.ModuleList(Queue(config.queue_length, config.dim) for _ in range(queues))
        self.register_buffer("progress", torch.zeros(()))
        self._new: list[Tensor] = []

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return the embeddings "z" of all crops, full-size ones first, [B, crops, dim]."""
        self.expect_views(batch, 2)
        # The head sees all crops at once, as in the reference code, so that its batch norm mixes them.
        features = torch.cat([self.backbone(crops) for crops in batch.crops])
        return {"z": batch.by_image(self.projector(features))}

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the swapped-prediction loss, the usage of the prototypes and the state of the queue."""
        z = embeddings["z"]
        self._new.append(z[:, :2].detach())
        scores = self.prototypes(z, frozen=self.progress < self.config.freeze_prototypes)
        codes = torch.stack([self._codes(scores[:, view].detach(), view) for view in range(2)], dim=1)
        return {
            "loss": swapped_cross_entropy(codes, scores, self.config.temperature),
            **code_health(codes),
            **(self._queues()[0].health() if self.queues else {}),
        }

    @torch.no_grad()
    def _codes(self, scores: Tensor, view: int) -> Tensor:
        settings = self.config.epsilon, self.config.sinkhorn_iterations
        if not self.queues:
            return sinkhorn(scores, *settings)
        queue = self._queues()[view]
        # Rows not pushed yet are random and must not take part.
        rows = torch.arange(-len(scores), len(queue.rows), device=scores.device)
        everyone = torch.cat([scores, self.prototypes(queue.rows).to(scores.dtype)])
        return sinkhorn(everyone, *settings, absent=rows >= queue.pushed)[: len(scores)]

    def _queues(self) -> list[Queue]:
        # Indexing a ModuleList yields plain Modules to the type checker.
        return [queue for queue in self.queues if isinstance(queue, Queue)]

    def after_step(self, progress: float) -> None:
        """Push the embeddings of the step into the queues, once `queue_start` is reached."""
        self.progress.fill_(progress)
        if progress >= self.config.queue_start:
            for view, queue in enumerate(self._queues()):
                queue.push(torch.cat(self._new)[:, view])
        self._new.clear()


@torch.no_grad()
def code_health(codes: Tensor) -> dict[str, Tensor]:
    """Return scalars worth logging about codes [N, 2, K].

    code_usage: share of the prototypes that are the first choice of some view, at most 2N/K; 1/K at collapse.
    code_entropy: mean entropy of a code in nats, 0 to log K.
    code_agreement: share of the images whose two views have the same first choice, 0 to 1 (chance is 1/K).
    """
    first = codes.argmax(2)
    used = codes.new_zeros(codes.shape[2]).index_fill(0, first.flatten(), 1)
    return {
        "code_usage": used.mean(),
        "code_entropy": torch.special.entr(codes).sum(2).mean(),
        "code_agreement": (first[:, 0] == first[:, 1]).float().mean(),
    }
