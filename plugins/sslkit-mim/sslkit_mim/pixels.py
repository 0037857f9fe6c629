"""MAE's prediction targets and reconstruction error, as pure functions."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.nn.losses import full_precision


def patch_pixels(images: Tensor, size: int, normalise: bool = False) -> Tensor:
    """Rows of the pixel values of each patch, [N, L, 3·size²], of images [N, 3, H, W]; `F.fold` inverts it.

    normalise: subtract the patch's mean and divide by its standard deviation (He et al. 2022, 3, "Reconstruction
    target").
    """
    pixels = F.unfold(images, size, stride=size).transpose(1, 2)
    if not normalise:
        return pixels
    variance, mean = torch.var_mean(pixels, dim=2, keepdim=True)
    return (pixels - mean) / (variance + 1e-6).sqrt()


def hidden_mse(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error over the values of masked patches only (He et al. 2022, 3).

    predicted, target: [N, L, D], or broadcastable to it; hidden: [N, L], 1 where a patch is masked, 0 where it is
    visible, with at least one masked. Computed in float32 under autocast; float64 stays.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        errors = (full_precision(predicted) - target).square().mean(2)
        return (errors * hidden).sum() / hidden.sum()


def hidden_mean(target: Tensor, hidden: Tensor) -> Tensor:
    """Mean over the values [N, L, D] of masked patches, as a scalar."""
    return (target.mean(2) * hidden).sum() / hidden.sum()
