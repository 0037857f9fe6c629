"""The transforms of an augmentation: their settings, the random parameters they draw, and how they are applied.

`sample` draws parameters for a batch; a call draws and applies them. `p` is the probability that an image is
transformed, one number for all views or one per view, which is all that an asymmetric augmentation needs.
"""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from sslkit.augment import ops
from sslkit.augment.draws import Draws
from sslkit.config.base import Config


def _probability(value: Any) -> Any:
    numbers = value if isinstance(value, list | tuple) else [value]
    fits = [isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= 1 for n in numbers]
    if not fits or not all(fits):
        raise ValueError("a probability lies between 0 and 1; give one number, or a list with one a view")
    return tuple(map(float, numbers)) if isinstance(value, list | tuple) else float(value)


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("the smaller number comes first")
    return value


Probability = Annotated[float | tuple[float, ...], BeforeValidator(_probability)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]

NO_BLUR = 1e-3
"""Standard deviation, in pixels, of a kernel that is exactly the identity in float32."""


class Crop(Config):
    """A random crop, resized to the size of the view."""

    p: Probability = 1.0
    """Probability, one number or one per view; otherwise the whole image is resized."""
    scale: Annotated[tuple[Fraction, Fraction], AfterValidator(_ascending)] = (0.08, 1.0)
    """Smallest and largest area of the crop, as a fraction of the image."""
    ratio: Range = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio (width over height) of the crop, drawn log-uniformly."""

    def sample(self, draws: Draws, height: int, width: int) -> Tensor:
        """Draw crops [V*B, 4], rows of top, left, height, width in whole pixels, as torchvision's RandomResizedCrop.

        A crop that does not fit is drawn again, up to ten times in all; then the largest central one is used. Where
        the transform is not applied, the crop is the whole image.
        """
        tries = 10
        area = draws.table(tries, *self.scale) * (height * width)
        ratio = draws.table(tries, *map(math.log, self.ratio)).exp_()
        heights, widths = (area / ratio).sqrt_().round_(), (area * ratio).sqrt_().round_()
        fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
        first = (fits * torch.arange(tries, 0, -1, device=fits.device)).argmax(1, keepdim=True)
        fitted, central = fits.any(1), self._central(height, width)
        box_height = torch.where(fitted, heights.gather(1, first)[:, 0], central[0])
        box_width = torch.where(fitted, widths.gather(1, first)[:, 0], central[1])
        top, left = _place(draws, height - box_height, fitted), _place(draws, width - box_width, fitted)
        boxes = torch.stack([top, left, box_height, box_width], dim=1)
        return boxes if self.p == 1 else boxes_where(draws.mask(self.p), boxes, height, width)

    def _central(self, height: int, width: int) -> tuple[float, float]:
        """Height and width of the crop that is used when none fits."""
        if width / height < self.ratio[0]:
            return float(round(width / self.ratio[0])), float(width)
        if width / height > self.ratio[1]:
            return float(height), float(round(height * self.ratio[1]))
        return float(height), float(width)


def boxes_where(cropped: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Return boxes [N, 4] where `cropped`, bool [N], is true; elsewhere the whole image of height × width pixels."""
    whole = (0.0, 0.0, float(height), float(width))
    return torch.stack([torch.where(cropped, own, side) for own, side in zip(boxes.unbind(1), whole)], dim=1)


def _place(draws: Draws, room: Tensor, fitted: Tensor) -> Tensor:
    """Draw the start of a box: any of room + 1 whole pixels, or the middle of the room where no box fitted."""
    start = torch.minimum((draws.uniform() * (room + 1)).floor_(), room)
    return torch.where(fitted, start, (room / 2).floor_())


class Flip(Config):
    """Flip horizontally."""

    p: Probability = 0.0
    """Probability, one number or one per view."""


class Rotate(Config):
    """Rotate about the centre and shear; before the crop, at the size of the source."""

    p: Probability = 0.0
    """Probability, one number or one per view."""
    degrees: float = Field(default=15.0, ge=0, le=180)
    """Largest angle in either direction."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Largest shear of the vertical in either direction, in degrees."""
    padding: Literal["zeros", "border", "reflection"] = "reflection"
    """Values outside the image."""

    def sample(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw angle and shear in degrees, [V*B] each; 0 where the transform is not applied."""
        applied = draws.mask(self.p)
        angle = draws.uniform(-self.degrees, self.degrees)
        shear = draws.uniform(-self.shear, self.shear)
        return angle * applied, shear * applied

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return ops.affine(images, *self.sample(draws), self.padding)


class Jitter(Config):
    """Brightness, contrast, saturation and hue, in random order, as torchvision's ColorJitter."""

    p: Probability = 0.0
    """Probability, one number or one per view."""
    brightness: float = Field(default=0.4, ge=0)
    """Factor from max(0, 1 - brightness) to 1 + brightness."""
    contrast: float = Field(default=0.4, ge=0)
    """Factor from max(0, 1 - contrast) to 1 + contrast."""
    saturation: float = Field(default=0.4, ge=0)
    """Factor from max(0, 1 - saturation) to 1 + saturation."""
    hue: float = Field(default=0.1, ge=0, le=0.5)
    """Largest hue shift in either direction; 0.5 is half the colour circle."""
    strength: float = Field(default=1.0, ge=0)
    """Multiplies all four; hue is capped at 0.5."""

    def sample(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw factors and order for `ops.jitter`, [V*B, 4] each, or [V*B, 3] if hue is 0."""
        applied = draws.mask(self.p)
        columns = []
        for strength in (self.brightness, self.contrast, self.saturation):
            spread = strength * self.strength
            columns.append(torch.where(applied, draws.uniform(max(0.0, 1 - spread), 1 + spread), 1.0))
        if hue := min(0.5, self.hue * self.strength):
            columns.append(torch.where(applied, draws.uniform(-hue, hue), 0.0))
        return torch.stack(columns, dim=1), draws.table(len(columns)).argsort(1)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return ops.jitter(images, *self.sample(draws))


class Grayscale(Config):
    """Remove the colour."""

    p: Probability = 0.0
    """Probability, one number or one per view."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return ops.grayscale(images, draws.mask(self.p))


class Blur(Config):
    """Gaussian blur."""

    p: Probability = 0.0
    """Probability, one number or one per view."""
    sigma: Range = (0.1, 2.0)
    """Smallest and largest standard deviation, in pixels of the view (not the radius of the kernel)."""
    kernel: float = Field(default=0.1, gt=0, le=1)
    """Width of the kernel as a fraction of the view, made odd (SimCLR, Appendix A: 10%)."""

    def sample(self, draws: Draws) -> Tensor:
        """Draw standard deviations in pixels, [V*B]; NO_BLUR where the transform is not applied."""
        return torch.where(draws.mask(self.p), draws.uniform(*self.sigma), NO_BLUR)

    def kernel_size(self, image_size: int) -> int:
        """Return the width of the kernel in pixels, odd and at least 3: 23 at 224 px, 9 at 96 px, 3 at 32 px."""
        return 2 * max(1, int(self.kernel * image_size) // 2) + 1

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return ops.gaussian_blur(images, self.sample(draws), self.kernel_size(images.shape[-1]))


class Solarize(Config):
    """Invert bright values."""

    p: Probability = 0.0
    """Probability, one number or one per view."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Value from which pixels are inverted, where white is 1."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return ops.solarize(images, self.threshold, draws.mask(self.p))
