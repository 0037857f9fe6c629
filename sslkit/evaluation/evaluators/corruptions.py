"""Common corruptions at five severities, of images uint8 [n, 3, S, S]; each gives uint8 of the same shape.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
with the parameters of their own code: those of CIFAR-10-C up to 64 px, those of ImageNet-C above.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SMALL = 64
"""Largest side in pixels for which the parameters of small images are used."""
SEVERITIES = range(1, 6)

Corruption = Callable[[Tensor, float, torch.Generator], Tensor]


def gaussian_noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of this standard deviation (white is 1), drawn from the generator on the CPU."""
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return _bytes(images / 255 + deviation * noise)


def gaussian_blur(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Blur by `sigma` pixels, truncated at 4 sigma; border pixels are replicated as far as needed."""
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images / 255, (reach, reach, reach, reach), mode="replicate")
    return _bytes(F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3))


def brightness(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Raise V of HSV by `amount`; hue and saturation are unchanged."""
    x = images / 255
    value = x.amax(1, keepdim=True)
    raised = (value + amount).clamp(max=1)
    return _bytes(torch.where(value > 0, x * raised / value.clamp_min(1e-6), raised))


def contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Scale the contrast of every channel of an image around its mean."""
    x = images / 255
    mean = x.mean((2, 3), keepdim=True)
    return _bytes((x - mean) * factor + mean)


def jpeg(images: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Compress with this JPEG quality, 1 to 100, and decompress."""
    return _by_pillow(images, lambda picture: _recompressed(picture, int(quality)))


def pixelation(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Shrink to this fraction of the side and enlarge again, both with a box filter."""
    side = images.shape[-1]
    small = int(side * share)
    box = Image.Resampling.BOX
    return _by_pillow(images, lambda picture: picture.resize((small, small), box).resize((side, side), box))


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...], tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "pixelation": (pixelation, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
}
"""Name -> (function, parameters at severities 1 to 5 for small images, those for large ones)."""


def corrupt(name: str, severity: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply corruption `name` at a severity of 1 to 5 to images uint8 [n, 3, S, S]."""
    change, small, large = CORRUPTIONS[name]
    return change(images, (small if images.shape[-1] <= SMALL else large)[severity - 1], generator)


def _bytes(x: Tensor) -> Tensor:
    # The authors' code truncates; rounding keeps float32 errors from changing an occasional grey level.
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


def _recompressed(picture: Image.Image, quality: int) -> Image.Image:
    compressed = io.BytesIO()
    picture.save(compressed, "JPEG", quality=quality)
    return Image.open(compressed)


def _by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    out = np.stack([np.asarray(change(Image.fromarray(np.ascontiguousarray(p)))) for p in pictures])
    return torch.from_numpy(out).permute(0, 3, 1, 2).to(images.device)
