"""The objects that a training run consists of."""

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
    """The objects that a training run consists of, built once."""

    config: RunConfig
    stores: Stores
    loader: Any
    augmentation: nn.Module
    method: Method
    trained: nn.Module
    """The module that a step calls: the method, wrapped in DistributedDataParallel if there are several processes."""
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    device: torch.device
    execution: Execution
    steps_per_epoch: int

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast dtype, or None for float32."""
        return self.execution.autocast

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def images_per_step(self) -> int:
        """Images per optimizer step, on all processes together."""
        return self.config.batch_size * self.config.accumulate

    @property
    def peak_lr(self) -> float:
        """The learning rate at the end of the warm-up, after scaling by the batch."""
        return scaled_lr(self.config.optimizer, self.images_per_step)
