"""RotNet: predict the rotation of an image."""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.config.task import Fitted, Task
from sslkit.methods.base import Batch, Method, RunInfo


def _angles(value: tuple[int, ...]) -> tuple[int, ...]:
    if any(angle % 45 or not 0 <= angle < 360 for angle in value) or len(set(value)) < len(value):
        raise ValueError("angles are different multiples of 45, from 0 to 315")
    return value


class RotNet(Method):
    """Predict the angle by which an image was rotated (Gidaris et al. 2018).

    Unsupervised Representation Learning by Predicting Image Rotations, arXiv:1803.07728: every image appears at
    all angles in the same batch (Section 4.1), and the loss is the cross entropy over angles (Eq. 2 and 3).
    The paper's Table 2 compares the four right angles (best) with eight of 45° and with two pairs.
    """

    class Config(Method.Config):
        angles: Literal[90, 45, 180] | Annotated[tuple[int, ...], Field(min_length=2), AfterValidator(_angles)] = 90
        """Degrees between neighbouring angles, 90, 45 or 180 (4, 8 or 2 classes), or the angles: [90, 270]."""

    augment: ClassVar[str] = "weak"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "sgd",
        "optimizer.lr": 0.1,
        "optimizer.weight_decay": 5e-4,
        "optimizer.momentum": 0.9,
        "optimizer.warmup_epochs": 0,
    }

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        """Return nothing: the general rules serve a short run better than the paper's settings."""
        return {}

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        step = config.angles
        self.angles = tuple(range(0, 360, step)) if isinstance(step, int) else step
        self.head = nn.Linear(self.width, len(self.angles))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images = rotations(batch.views, self.angles)
        logits = self.head(self.backbone(images.flatten(0, 1)))
        turned = torch.arange(len(self.angles), device=logits.device).repeat_interleave(len(batch.views))
        accuracy = (logits.argmax(1) == turned).float().mean()
        return {"loss": F.cross_entropy(logits.float(), turned), "rotation_accuracy": accuracy}


def rotations(images: Tensor, angles: tuple[int, ...]) -> Tensor:
    """Rotate square images to every angle, degrees counter-clockwise: [N, C, S, S] -> [angles, N, C, S, S].

    Right angles only move pixels. If an angle is no multiple of 90, all images show the square of side
    S/√2 that stays inside the image at any angle, bilinearly resampled to S, so that neither filled corners
    nor the magnification reveals the angle. (The paper does not state how its corners were filled.)
    """
    if all(angle % 90 == 0 for angle in angles):
        return torch.stack([torch.rot90(images, angle // 90, (2, 3)) for angle in angles])
    return torch.stack([_turned(images, angle) for angle in angles])


def _turned(images: Tensor, angle: int) -> Tensor:
    cos, sin = (f(math.radians(angle)) / math.sqrt(2) for f in (math.cos, math.sin))
    size = images.shape[3]
    centres = (torch.arange(size, device=images.device) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    # Position of each output pixel in the image; y points down.
    grid = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, "bilinear", "border", align_corners=False)
