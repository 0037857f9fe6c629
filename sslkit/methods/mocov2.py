"""MoCo v2: match the momentum encoder's embedding of the other view against thousands of earlier images."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.errors import UserError
from sslkit.machine.distributed import gather, rank, shared, world
from sslkit.methods.base import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit.nn.losses import queue_cross_entropy, queue_health, queue_logits
from sslkit.nn.momentum import ema_update, momentum_encoder
from sslkit.nn.queues import Queue


class MoCoV2(Method):
    """Contrast with a queue of earlier images' keys from a momentum encoder (He et al. 2020, Chen et al. 2020b).

    Momentum Contrast, arXiv:1911.05722, Algorithm 1, with the MLP head (without batch norm), temperature,
    augmentation and cosine schedule of arXiv:2003.04297. Negatives come from the queue alone, so small batches suffice.
    Batch norm sees queries and keys in groups of different images, because common statistics would reveal which
    key belongs to which query (Section 3.3, shuffling BN): a group is a process, or a part of one with `bn_splits`.
    """

    class Config(Method.Config):
        queue: int = Field(default=65536, ge=1)
        """K: keys kept as negatives; well below the number of images, or queries meet old keys of their own image."""
        momentum: float = Field(default=0.999, ge=0, le=1)
        """m of the key encoder (Eq. 2)."""
        temperature: float = Field(default=0.2, gt=0)
        """τ of Eq. 1."""
        hidden: int | None = Field(default=None, ge=1)
        """Width of the head's hidden layer; null: the width of the features, 2048 in the paper's ResNet-50."""
        dim: int = Field(default=128, ge=1)
        """Width of queries and keys."""
        norm: bool = False
        """Batch norm in the head, as in MoCo v3 (Chen et al. 2021); short runs on little data hardly learn without."""
        symmetric: bool = False
        """Sum both directions, each view once a query and once a key, as in MoCo's CIFAR-10 demo; twice the cost."""
        bn_splits: int = Field(default=1, ge=1)
        """Groups per process that batch norm sees separately; 8 on one GPU act like eight GPUs (the CIFAR-10 demo)."""

    augment: ClassVar[str] = "mocov2"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "sgd",
        "optimizer.lr": 0.03,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 1e-4,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 0,
    }
    sync_batchnorm: ClassVar[bool] = False

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {
            "method.queue": task.queue(65536),
            "method.momentum": task.momentum(0.999),
            "method.norm": task.when_short(True, False),
        }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.head = mlp(self.width, config.hidden or self.width, config.dim, norm=config.norm, last_norm=config.norm)
        self.key_encoder = momentum_encoder(self._query_encoder())
        self.queue = Queue(config.queue, config.dim)
        self._new_keys: list[Tensor] = []

    def _query_encoder(self) -> nn.Sequential:
        # Built on demand: a stored module would register the backbone a second time.
        return nn.Sequential(self.backbone, self.head)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Return queries "q" and keys "k", [B, directions, dim] each."""
        self._check(batch)
        first, second = batch.views.chunk(2)
        queries, keys = ((first, second), (second, first)) if self.config.symmetric else ((first,), (second,))
        return {
            "q": torch.stack([self._in_groups(self._query_encoder(), views) for views in queries], dim=1),
            "k": torch.stack([self._keys(views) for views in keys], dim=1),
        }

    def _check(self, batch: Batch) -> None:
        images, splits = len(batch.indices), self.config.bn_splits
        self.expect_views(batch, 2)
        if splits > 1 and images < 2 * splits:
            raise UserError(f"method.bn_splits={splits} needs {2 * splits} images at a time, not {images}; lower it")

    @torch.no_grad()
    def _keys(self, views: Tensor) -> Tensor:
        """Encode this process's views [B, 3, H, W] to keys, in groups drawn from all processes' views."""
        if world() * self.config.bn_splits == 1:
            out: Tensor = self.key_encoder(views)
            return out
        gathered = gather(views)
        order = shared(torch.randperm(len(gathered), device=views.device))
        shuffled = gather(self._in_groups(self.key_encoder, gathered[_mine(order)]))
        return shuffled[_mine(order.argsort())]

    def _in_groups(self, encoder: nn.Module, views: Tensor) -> Tensor:
        return torch.cat([encoder(group) for group in views.tensor_split(self.config.bn_splits)])

    def loss(self, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return InfoNCE against the queue, how well queries find their keys, and the state of the queue."""
        pairs = list(zip(embeddings["q"].unbind(1), embeddings["k"].detach().unbind(1)))
        self._new_keys += [k for _, k in pairs]
        logits = [queue_logits(q, k, self.queue.rows, self.config.temperature) for q, k in pairs]
        return {
            "loss": torch.stack([queue_cross_entropy(each) for each in logits]).sum(),
            **queue_health(logits[0].detach(), self.config.temperature),
            **self.queue.health(),
        }

    def after_step(self, progress: float) -> None:
        """Update the key encoder from the query encoder, and push the step's keys into the queue."""
        ema_update(self.key_encoder, self._query_encoder(), self.config.momentum)
        self.queue.push(torch.cat(self._new_keys))
        self._new_keys.clear()


def _mine(rows: Tensor) -> Tensor:
    return rows.chunk(world())[rank()]
