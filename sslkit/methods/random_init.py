"""No training: the features of the architecture alone."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sslkit.methods.base import Batch, Method, RunInfo


class RandomInit(Method):
    """Train nothing: the untrained network that every method must beat.

    Random features are no trivial baseline: on STL-10 or CIFAR-10 they classify far above chance. The one trained
    parameter is a scalar that nothing uses, with zero loss and gradient.
    """

    class Config(Method.Config):
        calibrate: bool = False
        """Pass the images through, so that batch norm has the statistics of the data: a stronger baseline."""

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
