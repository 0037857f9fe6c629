"""The contract of an augmentation."""

from typing import Any

import torch
from torch import Tensor, nn

from sslkit.augment.base import Triple
from sslkit.testing.contract import checked_settings, expect, seeded
from sslkit.testing.examples import IMAGES, small_images


def check_augmentation(augmentation_class: type[nn.Module], image_size: int = 32, **options: Any) -> None:
    """Check an augmentation: shapes, types, an unchanged input, and that its generator decides everything."""
    config = checked_settings(augmentation_class, options)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    with seeded(0):
        augmentation = augmentation_class(config, image_size, mean, std)
        plain = augmentation_class(config, image_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        for size in (image_size, image_size + 8):
            images = small_images(size)
            before = images.clone()
            crops = _views(augmentation, images, seed=1)
            _check_crops(augmentation, crops, image_size)
            expect(torch.equal(images, before), "an augmentation must not change its input in place")
            _check_draws(augmentation, images, crops)
            _check_normalised(crops, _views(plain, images, seed=1), mean, std)


def _views(augmentation: nn.Module, images: Tensor, seed: int) -> list[Tensor]:
    tensors: list[Tensor] = augmentation(images, torch.Generator().manual_seed(seed))
    return tensors


def _check_crops(augmentation: Any, crops: list[Tensor], image_size: int) -> None:
    expect(isinstance(crops, list) and len(crops) > 0, "an augmentation must return a list, one tensor per resolution")
    shape = (augmentation.n_views * IMAGES, 3, image_size, image_size)
    expect(
        crops[0].shape == shape,
        f"the views must be [n_views·B, 3, S, S] = {shape}, not {tuple(crops[0].shape)}",
    )
    for crop in crops:
        whole = crop.ndim == 4 and crop.shape[1] == 3 and len(crop) % IMAGES == 0
        expect(whole, f"every resolution must be [k·B, 3, h, w] for B={IMAGES}, not {tuple(crop.shape)}")
        expect(crop.dtype == torch.float32, f"views must be float32, not {crop.dtype}")
        expect(bool(crop.isfinite().all()), "views must be finite")
        layout = crop.is_contiguous(memory_format=torch.channels_last)
        expect(layout, "views must be channels_last: .contiguous(memory_format=torch.channels_last)")
        expect(not crop.requires_grad, "views must carry no graph")


def _check_draws(augmentation: nn.Module, images: Tensor, crops: list[Tensor]) -> None:
    torch.manual_seed(99)
    again = _views(augmentation, images, seed=1)
    expect(
        all(torch.equal(a, b) for a, b in zip(crops, again)),
        "equal generators must give equal views: draw every random number from the generator that is passed",
    )


def _check_normalised(crops: list[Tensor], plain: list[Tensor], mean: Triple, std: Triple) -> None:
    m, s = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    right = all(torch.allclose(crop, (raw - m) / s, atol=1e-4) for crop, raw in zip(crops, plain))
    expect(right, "views must be normalised last: (x - mean)/std of each channel, where white is 1")
