"""The contract of an augmentation: a module that turns a uint8 batch into normalised float views."""

from typing import Any

import torch
from torch import Tensor, nn

from sslkit.config import base
from sslkit.config.task import Fitted, Task

Triple = tuple[float, float, float]


class Augmentation(nn.Module):
    """Base of every augmentation.

    `image_size` is the height and width of a full-size view in pixels; `mean` and `std` normalise its
    channels, in units where white is 1.
    """

    class Config(base.Config):
        """Settings of an augmentation, given as `augment.<field>=`."""

    n_views: int
    """V, the number of full-size views."""

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        """Return settings of the augmentation, by dotted key, that follow from the task: {"blur.p": ...}."""
        return {}

    def __init__(self, config: Any, image_size: int, mean: Triple, std: Triple) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.mean = mean
        self.std = std

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Return views of a batch, full-size ones first.

        images: uint8 [B, 3, H, W], on any device; never modified.
        generator: source of all randomness, on the device of the images or the CPU; None: torch's global generator.
        Returns one float32 tensor [V*B, 3, h, w] per resolution, in blocks of views (view i is `chunk(V)[i]`),
        normalised, channels_last.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward")
