"""No training at all: what the architecture alone gives."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sslkit.config import base as config
from sslkit.methods.base import Batch, Method, RunInfo


class RandomInit(Method):
    """Train nothing: the untrained network that every method must beat.

    Random features are no empty reference: on STL-10 or CIFAR-10 they classify far above chance. The one trained
    parameter is a scalar that nothing uses, whose loss and gradient are zero.
    """

    class Config(config.Config):
        calibrate: bool = False
        """Pass the images through, so that batch norm has the statistics of the data: a stronger reference."""

    augment: ClassVar[str] = "weak"

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        backbone.requires_grad_(False)
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        if self.config.calibrate:
            with torch.no_grad():
                self.backbone(batch.views)
        return {"loss": self.unused.square()}
