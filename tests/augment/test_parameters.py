"""The random parameters of every step: their distributions, against torchvision's where it has them."""

import math
from collections import Counter

import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter, RandomResizedCrop

from sslkit.augment import Blur, Crop, Flip, Grayscale, Jitter, Rotate, Solarize, ops
from sslkit.augment.draws import Draws
from sslkit.augment.transforms import NO_BLUR

MANY = 4000
SAME = 1e-3
"""Smallest p-value that passes; the seeds are fixed, so a test that passes does so always."""


def draws(images: int = MANY, views: int = 1, seed: int = 0) -> Draws:
    return Draws(views, images, torch.device("cpu"), torch.Generator().manual_seed(seed))


def torchvision_boxes(crop: Crop, height: int, width: int) -> torch.Tensor:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    boxes = [RandomResizedCrop.get_params(image, list(crop.scale), list(crop.ratio)) for _ in range(MANY)]
    return torch.tensor(boxes).float()


def ks(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue


@pytest.mark.parametrize(
    ("crop", "height", "width"),
    [(Crop(), 32, 32), (Crop(scale=(0.2, 1.0)), 96, 96), (Crop(scale=(0.3, 0.9), ratio=(0.5, 1.5)), 60, 100)],
)
def test_boxes_are_distributed_as_torchvisions(crop, height, width):
    ours, theirs = crop.sample(draws(), height, width), torchvision_boxes(crop, height, width)
    measures = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: (b[:, 3] / b[:, 2]).log(),
        "height": lambda b: b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "centre": lambda b: b[:, 1] + b[:, 3] / 2,
    }
    for name, measure in measures.items():
        assert ks(measure(ours), measure(theirs)) > SAME, name


def test_boxes_are_whole_pixels_inside_the_image_and_reach_its_borders():
    boxes = Crop().sample(draws(), 20, 30)
    top, left, height, width = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert min(height.min(), width.min()) >= 1
    assert (top.min(), left.min()) == (0, 0)
    assert ((top + height).max(), (left + width).max()) == (20, 30)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(32, 32, (0, 0, 32, 32)), (20, 50, (0, 15, 20, 20)), (51, 20, (15, 0, 20, 20))],
)
def test_a_box_that_never_fits_is_the_largest_central_one(height, width, box):
    crop = Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    boxes = crop.sample(draws(5), height, width)
    assert boxes.tolist() == [list(map(float, box))] * 5
    assert torchvision_boxes(crop, height, width)[0].tolist() == boxes[0].tolist()


def test_jitter_factors_are_distributed_as_torchvisions():
    jitter = Jitter(p=1.0, brightness=0.8, contrast=1.5, saturation=0.3, hue=0.2)
    factors, _ = jitter.sample(draws())
    torch.manual_seed(0)
    tv = ColorJitter(0.8, 1.5, 0.3, 0.2)
    theirs = [ColorJitter.get_params(tv.brightness, tv.contrast, tv.saturation, tv.hue)[1:] for _ in range(MANY)]
    for ours, reference in zip(factors.unbind(1), torch.tensor(theirs).unbind(1), strict=True):
        assert ks(ours, reference) > SAME


def test_jitter_takes_every_order_equally_often():
    _, order = Jitter(p=1.0).sample(draws(24 * 400))
    counts = Counter(map(tuple, order.tolist()))
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > SAME


def test_jitter_leaves_alone_what_it_does_not_take():
    factors, _ = Jitter(p=0.3).sample(draws())
    idle = (factors == torch.tensor([1.0, 1.0, 1.0, 0.0])).all(1)
    assert idle.float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert (factors[~idle] != 1).all()


def test_jitter_strength_multiplies_and_no_hue_needs_no_fourth_column():
    weak, _ = Jitter(p=1.0, brightness=0.8, hue=0.2, strength=0.5).sample(draws())
    full, _ = Jitter(p=1.0, brightness=0.4, hue=0.1, contrast=0.2, saturation=0.2).sample(draws())
    torch.testing.assert_close(weak[:, ops.BRIGHTNESS], full[:, ops.BRIGHTNESS])
    torch.testing.assert_close(weak[:, ops.HUE], full[:, ops.HUE])
    factors, order = Jitter(p=1.0, hue=0.0).sample(draws())
    assert factors.shape == order.shape == (MANY, 3)
    assert Jitter(p=1.0, hue=0.5, strength=3.0).sample(draws())[0][:, ops.HUE].abs().max() <= 0.5


def test_sigma_is_uniform_where_the_step_is_taken():
    sigma = Blur(p=0.5, sigma=(0.1, 2.0)).sample(draws())
    taken = sigma[sigma != NO_BLUR]
    assert len(taken) / MANY == pytest.approx(0.5, abs=0.03)
    assert stats.kstest(taken.numpy(), "uniform", (0.1, 1.9)).pvalue > SAME


def test_no_blur_is_exactly_no_blur():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.gaussian_blur(images, torch.full((2,), NO_BLUR), 9), images)


def test_kernel_is_a_tenth_of_the_view_made_odd():
    assert {s: Blur().kernel_size(s) for s in (8, 32, 64, 96, 224)} == {8: 3, 32: 3, 64: 7, 96: 9, 224: 23}


def test_angle_and_shear_are_uniform_in_both_directions_where_the_step_is_taken():
    angle, shear = Rotate(p=0.4, degrees=20, shear=10).sample(draws())
    taken = angle != 0
    assert taken.float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert torch.equal(taken, shear != 0)
    for value, limit in ((angle[taken], 20), (shear[taken], 10)):
        assert stats.kstest(value.numpy(), "uniform", (-limit, 2 * limit)).pvalue > SAME


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_masks_have_their_rate(p):
    assert draws().mask(p).float().mean().item() == pytest.approx(p, abs=0.025)


def test_masks_have_one_rate_a_view():
    rates = draws(views=3).mask((1.0, 0.1, 0.0)).view(3, -1).float().mean(1)
    assert rates.tolist() == pytest.approx([1.0, 0.1, 0.0], abs=0.02)


@pytest.mark.parametrize(
    "step",
    [
        Grayscale(p=(0.0, 1.0)),
        Solarize(p=(0.0, 1.0)),
        Blur(p=(0.0, 1.0), sigma=(1.0, 2.0)),
        Jitter(p=(0.0, 1.0)),
        Rotate(p=(0.0, 1.0)),
    ],
    ids=lambda step: type(step).__name__,
)
def test_steps_change_only_the_views_that_take_them(step):
    images = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = step(images, draws(16, views=2))
    first, second = (changed - images).abs().amax((1, 2, 3)).view(2, 16)
    assert first.max() < 1e-5
    assert second.min() > 1e-3


def test_draws_of_different_steps_are_independent():
    numbers = draws()
    first, second = numbers.uniform(), numbers.uniform()
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 4 / math.sqrt(MANY)


@pytest.mark.parametrize(
    ("step", "settings", "message"),
    [
        (Flip, {"p": 1.5}, "between 0 and 1"),
        (Flip, {"p": [0.5, "x"]}, "between 0 and 1"),
        (Flip, {"p": None}, "between 0 and 1"),
        (Flip, {"p": []}, "between 0 and 1"),
        (Crop, {"scale": (0.5, 0.2)}, "smaller number comes first"),
        (Crop, {"scale": (0.0, 1.0)}, "greater than 0"),
        (Crop, {"scale": (0.5, 1.2)}, "less than or equal to 1"),
        (Blur, {"sigma": (0.0, 1.0)}, "greater than 0"),
        (Jitter, {"hue": 0.6}, "less than or equal to 0.5"),
        (Rotate, {"padding": "black"}, "'zeros', 'border' or 'reflection'"),
    ],
)
def test_settings_out_of_range_are_refused(step, settings, message):
    with pytest.raises(ValueError, match=message):
        step.model_validate(settings)
