"""Everything that a training run is made of."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sslkit.config.run import RunConfig
from sslkit.data import Stores
from sslkit.methods.base import Method
from sslkit.training.execution import Execution
from sslkit.training.optim.schedule import Schedule, scaled_lr


@dataclass
class TrainingSetup:
    """Everything a run is made of, built once."""

    config: RunConfig
    stores: Stores
    loader: Any
    augmentation: nn.Module
    method: Method
    trained: nn.Module
    """What a step calls: the method, or with several processes the method in DistributedDataParallel."""
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    device: torch.device
    execution: Execution
    steps_per_epoch: int

    @property
    def autocast(self) -> torch.dtype | None:
        """The type of autocast, or None for plain float32."""
        return self.execution.autocast

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def images_per_step(self) -> int:
        """Images an optimizer step, on all processes together."""
        return self.config.batch_size * self.config.accumulate

    @property
    def peak_lr(self) -> float:
        """The learning rate after scaling by the batch, at the end of the warm-up."""
        return scaled_lr(self.config.optimizer, self.images_per_step)
