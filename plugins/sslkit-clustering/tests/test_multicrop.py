"""Multi-crop: numbers, sizes and colours of the crops."""

import math

import pytest
import torch
from pydantic import ValidationError
from sslkit_clustering.multicrop import DINOCrops, MultiCrop, SwAVCrops, local_size_for

from sslkit.testing import check_augmentation


def crops_of(augmentation_class, size=32, **options):
    augmentation = augmentation_class(augmentation_class.Config(**options), size, (0.5,) * 3, (0.25,) * 3)
    images = torch.randint(0, 256, (4, 3, size + 4, size + 4), dtype=torch.uint8)
    return augmentation(images, torch.Generator().manual_seed(0))


def test_sizes_and_numbers_of_crops():
    assert [tuple(c.shape) for c in crops_of(MultiCrop)] == [(8, 3, 32, 32), (24, 3, 16, 16)]
    given = crops_of(DINOCrops, local_views=3, local_size=24)
    assert [tuple(c.shape) for c in given] == [(8, 3, 32, 32), (12, 3, 24, 24)]
    assert [tuple(c.shape) for c in crops_of(SwAVCrops, local_views=0)] == [(8, 3, 32, 32)]


@pytest.mark.parametrize(("size", "local"), [(224, 96), (160, 72), (96, 40), (64, 24), (32, 16), (16, 16)])
def test_local_size(size, local):
    assert local_size_for(size) == local


def test_local_crops_show_less_of_the_image():
    """On a ramp the range of values tells how much of the width a crop shows."""
    ramp = torch.arange(128, dtype=torch.uint8).expand(64, 3, 128, 128)
    augmentation = MultiCrop(MultiCrop.Config(), 32, (0.0,) * 3, (1.0,) * 3)
    shown = [
        (c.amax((1, 2, 3)) - c.amin((1, 2, 3))) * 255 / 127
        for c in augmentation(ramp, torch.Generator().manual_seed(0))
    ]
    # A box has at most the area times the aspect ratio, rooted, of the width.
    assert shown[1].max() < math.sqrt(0.14 * 4 / 3) + 0.02
    assert shown[0].max() > 0.8
    assert shown[0].mean() > 2 * shown[1].mean()


def test_colours_of_the_papers():
    """A white image stays white unless it is solarized, a black one unless it is never changed."""
    dino = DINOCrops(DINOCrops.Config(), 32, (0.0,) * 3, (1.0,) * 3)
    white = torch.full((200, 3, 32, 32), 255, dtype=torch.uint8)
    large, small = dino(white, torch.Generator().manual_seed(0))
    black = [(view.mean((1, 2, 3)) < 0.4).float().mean().item() for view in (*large.chunk(2), small)]
    assert black[0] == black[2] == 0
    assert black[1] == pytest.approx(0.2, abs=0.09)


def test_small_views_have_a_blur_of_their_own():
    noise = torch.randint(0, 256, (16, 3, 48, 48), dtype=torch.uint8)
    rough = {}
    for p in (0.0, 1.0):
        config = MultiCrop.Config(local_blur={"p": p, "sigma": (2.0, 2.0), "kernel": 0.5})
        crops = MultiCrop(config, 32, (0.0,) * 3, (1.0,) * 3)(noise, torch.Generator().manual_seed(0))
        rough[p] = [c.diff(dim=3).abs().mean().item() for c in crops]
    assert rough[0.0][0] == rough[1.0][0]
    assert rough[1.0][1] < rough[0.0][1] / 3


def test_settings_keep_the_rest_of_a_step():
    config = SwAVCrops.Config(local_crop={"scale": (0.1, 0.2)}, local_blur={"p": 0})
    assert config.local_crop.ratio == (3 / 4, 4 / 3)
    assert config.local_crop.scale == (0.1, 0.2)
    assert config.blur.p == 0.5


def test_probabilities_a_view_are_for_the_large_views_own_steps():
    with pytest.raises(ValidationError, match=r"jitter\.p also holds for the small views"):
        MultiCrop.Config(jitter={"p": [1, 0]})
    assert MultiCrop.Config(jitter={"p": [1, 0]}, local_views=0).jitter.p == (1, 0)


@pytest.mark.parametrize("augmentation_class", [MultiCrop, SwAVCrops, DINOCrops])
@pytest.mark.parametrize("options", [{}, {"local_views": 0}])
def test_augmentation_contract(augmentation_class, options):
    check_augmentation(augmentation_class, **options)
