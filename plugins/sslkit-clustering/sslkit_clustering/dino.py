"""DINO: a student network predicts a momentum teacher's distribution over prototypes for other crops."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.machine import distributed
from sslkit.methods import Batch, Method, RunInfo
from sslkit.nn.heads import mlp
from sslkit.nn.momentum import cosine_momentum, ema_update, momentum_encoder
from sslkit_clustering.assignments import Prototypes, swapped_cross_entropy


class DINO(Method):
    """Match a momentum teacher's soft assignment of other crops, kept spread by a centre (Caron et al. 2021).

    Self-Distillation with No Labels, arXiv:2104.14294: Algorithm 1 with multi-crop (Eq. 3). The teacher sees
    the full-size views; its outputs are centred by their moving average (Eq. 4) and sharpened. The projection head
    follows the reference code: three layers with GELU, an L2-normalised bottleneck, and a weight-normalised last
    layer. Works with vision transformers and with convolutional networks.
    """

    class Config(Method.Config):
        prototypes: int = Field(default=65536, ge=2)
        """K: width of the output; a few thousand suffice for small data."""
        student_temperature: float = Field(default=0.1, gt=0)
        """τ_s of Eq. 1."""
        teacher_temperature: float = Field(default=0.07, gt=0)
        """τ_t after its warm-up; lower it towards 0.04 if the loss stays at log K."""
        warmup_teacher_temperature: float = Field(default=0.04, gt=0)
        """τ_t at the start."""
        warmup_teacher: float = Field(default=0.1, gt=0, le=1)
        """Share of the run over which τ_t rises linearly; 30 of 300 epochs."""
        momentum: float = Field(default=0.996, ge=0, le=1)
        """λ: the teacher's momentum at the start; it rises to 1 along a cosine."""
        centre_momentum: float = Field(default=0.9, ge=0, le=1)
        """m of the centre (Eq. 4)."""
        hidden: int = Field(default=2048, ge=1)
        """Width of the head's two hidden layers."""
        bottleneck: int = Field(default=256, ge=1)
        """Width of the input of the last layer."""
        norm: bool = False
        """Batch norm in the head."""
        freeze_last_layer: float = Field(default=0.01, ge=0, le=1)
        """Share of the run during which the last layer is frozen; 1 of 100 epochs."""

    augment: ClassVar[str] = "dino"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "adamw",
        "optimizer.lr": 5e-4,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 0.04,
        "optimizer.weight_decay_end": 0.4,
        "optimizer.warmup_epochs": 10,
        "optimizer.clip_grad": 3.0,
    }
    progress: Tensor
    centre: Tensor

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {
            "method.prototypes": task.prototypes(65536),
            "method.momentum": task.momentum(0.996),
            "method.teacher_temperature": task.when_short(0.04, 0.07),
        }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        dims = self.width, config.hidden, config.hidden, config.bottleneck
        self.head = mlp(*dims, norm=config.norm, activation=nn.GELU).apply(_initialise)
        self.prototypes = Prototypes(config.bottleneck, config.prototypes)
        self.teacher = momentum_encoder(self._student())
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self.register_buffer("progress", torch.zeros(()))
        self._teacher_means: list[Tensor] = []

    def _student(self) -> nn.Sequential:
        # Built on demand: a stored module would register the backbone a second time.
        return nn.Sequential(self.backbone, self.head, self.prototypes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.expect_views(batch, 2, or_more=True)
        features = torch.cat([self.backbone(crops) for crops in batch.crops])
        frozen = self.progress < self.config.freeze_last_layer
        student = batch.by_image(self.prototypes(self.head(features), frozen))
        targets = self._targets(batch)
        loss = swapped_cross_entropy(targets, student, self.config.student_temperature)
        entropy = torch.special.entr(targets).sum(2).mean()
        return {
            "loss": loss,
            "teacher_entropy": entropy,
            "teacher_student_kl": loss.detach() - entropy,
            "centre_norm": self.centre.norm(),
        }

    @torch.no_grad()
    def _targets(self, batch: Batch) -> Tensor:
        """The teacher's distributions of the full-size views, [B, V, K]."""
        teacher = batch.by_image(self.teacher(batch.views))
        self._teacher_means.append(teacher.mean((0, 1)))
        return ((teacher - self.centre) / self.teacher_temperature()).softmax(2)

    @property
    def exported(self) -> nn.Module:
        """The teacher's backbone, which the paper evaluates (Section 3.1: it is better throughout training)."""
        return self.teacher[0]

    def teacher_temperature(self) -> Tensor:
        """τ_t of the current step."""
        start, end = self.config.warmup_teacher_temperature, self.config.teacher_temperature
        out: Tensor = start + (end - start) * (self.progress / self.config.warmup_teacher).clamp(max=1)
        return out

    def after_step(self, progress: float) -> None:
        """Update the centre with the teacher's outputs, and the teacher with the student's weights."""
        centre = distributed.mean(torch.stack(self._teacher_means).mean(0))
        self.centre.lerp_(centre, 1 - self.config.centre_momentum)
        self._teacher_means.clear()
        ema_update(self.teacher, self._student(), cosine_momentum(self.config.momentum, progress))
        self.progress.fill_(progress)


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
