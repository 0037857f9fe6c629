"""Image operations with given parameters, one set per image: plain batched torch on any device, no host sync.

Images are float [N, 3, H, W] in [0, 1] and are never modified. The operations return tensors with memory
ordered channel, image, row, column: each channel is one contiguous block, which is the fastest layout for pointwise
colour arithmetic. `normalize`, the last, returns channels_last.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Columns of the factors that `jitter` takes, and the values of its orders."""

LUMA = (0.2989, 0.587, 0.114)
"""ITU-R 601-2 weights of red, green and blue, as torchvision rounds them."""


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 [N, 3, H, W] to float32 in [0, 1]; TypeError for any other type, whose range is unknown."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, not {images.dtype}")
    planes = images.transpose(0, 1).contiguous().to(torch.float32).div_(255)
    return planes.transpose(0, 1)


def resized_crop(images: Tensor, boxes: Tensor, flip: Tensor | None, size: int) -> Tensor:
    """Crop a box out of every image, resize it to size × size and flip it horizontally where `flip` is true.

    boxes: float [V*N, 4], rows of top, left, height, width in pixels; image i has the rows i, N+i, 2N+i ...
    flip: bool [V*N], or None to flip nothing. Returns [V*N, 3, size, size].
    Equal to torchvision's `resized_crop(antialias=True)`: resampling is linear and separable, so it is two
    batched matrix products. In TF32 these round to about a quarter of a grey level.
    """
    top, left, height, width = boxes.unbind(1)
    rows = _resize_matrix(top, height, None, images.shape[2], size)
    columns = _resize_matrix(left, width, flip, images.shape[3], size)
    return _resample(images, rows, columns)


def _resize_matrix(start: Tensor, length: Tensor, flip: Tensor | None, source: int, size: int) -> Tensor:
    """Return [N, size, source], the weights of source pixels in each output pixel (triangle filter, rows sum to 1)."""
    start, scale = start[:, None], length[:, None] / size
    outputs = torch.arange(size, device=start.device) + 0.5
    inputs = torch.arange(source, device=start.device) + 0.5
    if flip is not None:
        outputs = torch.where(flip[:, None], size - outputs, outputs)
    inside = (inputs > start) & (inputs < start + length[:, None])
    centres = start + outputs * scale
    weights = (inputs - centres[:, :, None]).abs_().mul_((-1 / scale.clamp(min=1))[:, :, None]).add_(1)
    weights = weights.clamp_(min=0).mul_(inside[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply rows [V*N, h, H] · image [N, 3, H, W] · columns [V*N, w, W] transposed."""
    rows = rows.unflatten(0, (-1, len(images))).transpose(0, 1)
    columns = columns.unflatten(0, (-1, len(images))).permute(1, 0, 3, 2)
    # One product for the rows of all views of an image: a product per view would first copy the image for each.
    stacked, shape = rows.flatten(1, 2), rows.shape[1:3]
    planes = [((stacked @ plane).unflatten(1, shape) @ columns).transpose(0, 1) for plane in images.unbind(1)]
    return torch.stack(planes).flatten(1, 2).transpose(0, 1)


def affine(images: Tensor, angle: Tensor, shear: Tensor, padding: str = "zeros") -> Tensor:
    """Rotate about the centre (degrees, clockwise) after shearing the rows (degrees); both float [N].

    padding: "zeros", "border" or "reflection", the values outside the image. Bilinear, at the source's size.
    Equal to torchvision's `affine(angle, translate=[0, 0], scale=1, shear=[shear, 0])`.
    """
    inverse = inverse_affine(angle, shear, images.shape[3] / images.shape[2])
    return F.grid_sample(images, _grid(inverse, *images.shape[2:]), "bilinear", padding, align_corners=False)


def _grid(inverse: Tensor, height: int, width: int) -> Tensor:
    """Return [N, H, W, 2] as `F.affine_grid`, whose product in TF32 on a GPU is off by a hundredth of a pixel."""
    across = (torch.arange(width, device=inverse.device) + 0.5) * (2 / width) - 1
    down = ((torch.arange(height, device=inverse.device) + 0.5) * (2 / height) - 1)[:, None]
    to_x, to_y, shift = inverse[..., None, None].unbind(2)
    return (to_x * across + to_y * down + shift).movedim(1, 3)


def inverse_affine(angle: Tensor, shear: Tensor, aspect: float) -> Tensor:
    """Return [N, 2, 3], from positions in the rotated image to the source, both in [-1, 1]; aspect: width / height."""
    angle, slant = torch.deg2rad(angle), torch.tan(torch.deg2rad(shear))
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    rows = [cos - sin * slant, (cos * slant + sin) / aspect, zero, -sin * aspect, cos, zero]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue in each image's own order, as torchvision's `adjust_*`.

    factors: float [N, 4], columns as the constants above: three factors of which 1 changes nothing, and a
    hue shift in [-0.5, 0.5]. order: int64 [N, 4], rows are permutations of the columns.
    With three columns in both, hue is unchanged.

    The first three are all `f·x + g·gray(x) + m·mean(gray(x))`, clamped, so one expression serves images that
    are at different operations. Hue is expensive and computed once, with three blends before it and three after, of
    which the inactive ones are the identity.
    """
    turns = order.shape[1]
    if turns <= HUE:
        return _blends(images, factors, order, torch.ones_like(order, dtype=torch.bool))
    hue_turn = (order == HUE).to(torch.uint8).argmax(1, keepdim=True)
    turn = torch.arange(turns, device=order.device)
    images = _blends(images, factors, order[:, :-1], turn[:-1] < hue_turn)
    images = turn_hue(images, factors[:, HUE])
    return _blends(images, factors, order[:, 1:], turn[1:] > hue_turn)


def _blends(images: Tensor, factors: Tensor, order: Tensor, active: Tensor) -> Tensor:
    """Change brightness, contrast or saturation for each column of `order`, where `active` is true."""
    chosen = torch.where(active, factors.gather(1, order), 1.0)
    to_gray = (1 - chosen) * (order == SATURATION)
    to_mean = (1 - chosen) * (order == CONTRAST)
    for keep, gray, mean in zip(*(c[:, :, None, None].unbind(1) for c in (chosen, to_gray, to_mean))):
        luma = _luma(images)
        mix = luma.mean((1, 2), keepdim=True).mul_(mean)
        mix = luma.mul_(gray).add_(mix)[:, None]
        images = torch.addcmul(mix, images, keep[:, None]).clamp_(0, 1)
    return images


def turn_hue(images: Tensor, hue: Tensor) -> Tensor:
    """Shift the hue of each image by `hue` [N], where 1 is the full circle; HSV saturation and value are unchanged."""
    red, green, blue = images.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    not_red, not_green = (high - red).sign_(), (high - green).sign_()
    angle = torch.lerp((blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4), not_green)
    angle = torch.lerp(green - blue, angle, not_red).div_(chroma.clamp(min=1e-12) * 6)
    angle += hue[:, None, None]
    # A channel is highest within a sixth of the circle around its own hue, and lowest beyond two sixths.
    return torch.stack([_at_hue(high, chroma, angle + o) for o in (1 / 2, 1 / 6, -1 / 6)]).transpose(0, 1)


def _at_hue(high: Tensor, chroma: Tensor, distance: Tensor) -> Tensor:
    distance = (distance - distance.round()).abs_()
    return torch.addcmul(high, chroma, distance.mul_(-6).add_(2).clamp_(0, 1), value=-1)


def grayscale(images: Tensor, mask: Tensor) -> Tensor:
    """Replace all three channels by the luma where `mask` (bool [N]) is true."""
    return torch.lerp(images, _luma(images)[:, None], mask[:, None, None, None].to(images.dtype))


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Apply a Gaussian blur of standard deviation `sigma` [N] > 0, in pixels, with reflected borders.

    kernel_size: odd, below twice the height and width. Equal to torchvision's `gaussian_blur`.
    """
    offsets = torch.arange(kernel_size, device=images.device) - kernel_size // 2
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]).square())
    kernel = kernel / kernel.sum(1, keepdim=True)
    rows, columns = (_blur_matrix(kernel, size) for size in images.shape[2:])
    return _resample(images, rows, columns)


def _blur_matrix(kernel: Tensor, size: int) -> Tensor:
    """Return the kernel [N, k] of each image as a matrix [N, size, size], reflection included."""
    taps = kernel.shape[1]
    identity = torch.eye(size, device=kernel.device, dtype=kernel.dtype)
    padded = F.pad(identity[None], (taps // 2, taps // 2), mode="reflect")[0]
    shifted = padded.unfold(1, size, 1).permute(1, 2, 0).reshape(taps, size * size)
    return (kernel @ shifted).view(-1, size, size)


def solarize(images: Tensor, threshold: float, mask: Tensor) -> Tensor:
    """Invert values at or above `threshold` in the images where `mask` (bool [N]) is true."""
    limits = torch.where(mask, threshold, math.inf)[:, None, None, None]
    return torch.where(images >= limits, 1 - images, images)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return (image - mean) / std per channel, channels_last."""
    out = torch.empty_like(images, memory_format=torch.channels_last)
    for channel, plane in enumerate(images.unbind(1)):
        out[:, channel] = (plane - mean[channel]).div_(std[channel])
    return out
