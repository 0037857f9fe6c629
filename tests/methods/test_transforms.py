"""The named transformations, each against a reference at fixed parameters, and as a method applies them."""

import numpy as np
import pytest
import torch
from kornia.filters import sobel as kornia_sobel
from torchvision.transforms.v2 import functional as tv

from sslkit.augment import ops
from sslkit.methods.transforms import GREY, NAMES, NOISE, TRANSFORMS, check_names, cut_out, quarter_turns, transform
from sslkit.methods.transforms import sobel as sobel_length

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ORIGINAL = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def pictures(count: int = 6, size: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def applied(name: str, images: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """By name, on images whose normalisation is the identity."""
    return transform(images, [name], *ORIGINAL, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_quarter_turns_are_rot90(dtype):
    images = (255 * pictures(4)).to(dtype)
    turned = quarter_turns(images, torch.tensor([0, 1, 2, 3]))
    assert all(torch.equal(turned[k], images[k].rot90(k, (1, 2))) for k in range(4))


def test_rotation_draws_all_four_turns_an_image_its_own():
    image = pictures(1)
    turned = applied("rotation", image.expand(400, -1, -1, -1))
    turns = torch.stack([(turned == image.rot90(k, (2, 3))).flatten(1).all(1) for k in range(4)])
    assert turns.sum(0).eq(1).all()
    assert turns.float().mean(1).sub(0.25).abs().max() < 0.08


def test_cut_out_is_a_square_cut_off_at_the_border():
    images, centres = pictures(3), torch.tensor([[6.0, 6.0], [0.0, 11.9], [3.3, 8.2]])
    expected = images.numpy().copy()
    for image, (row, column) in zip(expected, centres.tolist()):
        for i in range(12):
            for j in range(12):
                if abs(i + 0.5 - row) < 3 and abs(j + 0.5 - column) < 3:
                    image[:, i, j] = GREY
    np.testing.assert_array_equal(cut_out(images, centres, 6).numpy(), expected)


def test_cutout_greys_a_quarter_at_most_and_a_sixteenth_at_least():
    cut = applied("cutout", torch.ones(200, 3, 16, 16))
    share = (cut == GREY).all(1).flatten(1).float().mean(1)
    assert share.max() == 1 / 4
    assert 1 / 16 <= share.min() < 1 / 8
    assert cut.eq(GREY).logical_or(cut.eq(1)).all()


def test_sobel_is_the_length_of_the_gradient():
    images = pictures(2, 7)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    padded = np.pad(images.double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    expected = np.empty((2, 3, 7, 7))
    for i in range(7):
        for j in range(7):
            window = padded[:, :, i : i + 3, j : j + 3]
            across, down = ((window * k).sum((2, 3)) for k in (kernel, kernel.T))
            expected[:, :, i, j] = np.sqrt(across**2 + down**2)
    np.testing.assert_allclose(sobel_length(images).numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(4, 3, 33, 40), (1, 1, 1, 1)])
def test_sobel_is_kornias(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, theirs = sobel_length(images), kornia_sobel(images)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    slopes = [torch.autograd.grad(out.sum(), images)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=0)


def test_noise_is_gaussian_and_stays_between_black_and_white():
    grey = torch.full((20, 3, 16, 16), 0.5)
    noise = applied("noise", grey) - grey
    assert noise.std().item() == pytest.approx(NOISE, rel=0.03)
    assert noise.mean().abs() < 0.005
    assert noise.abs().gt(1.96 * NOISE).float().mean().item() == pytest.approx(0.05, abs=0.01)
    dark = applied("noise", torch.zeros(20, 3, 16, 16))
    assert dark.min() == 0
    assert 0 < dark.max() < 1


def test_those_without_parameters_are_torchvisions():
    images = pictures()
    torch.testing.assert_close(applied("flip", images), tv.horizontal_flip(images))
    torch.testing.assert_close(applied("solarize", images), torch.where(images >= 0.5, 1 - images, images))
    torch.testing.assert_close(applied("grayscale", images), tv.rgb_to_grayscale(images, 3), atol=1e-5, rtol=0)


def test_blur_is_torchvisions_with_a_sigma_between_a_tenth_and_two():
    images = pictures(40, 32)
    blurred = applied("blur", images)
    sigmas = torch.linspace(0.1, 2, 60)
    candidates = torch.stack([tv.gaussian_blur(images, 3, [s.item()]) for s in sigmas])
    distance = (candidates - blurred).abs().amax((2, 3, 4))
    nearest = sigmas[distance.argmin(0)]
    assert distance.amin(0).max() < 0.03
    assert nearest.min() < 0.5
    assert nearest.max() > 1.5


def test_crop_is_a_box_of_the_image_resized():
    images = pictures(3, 16)
    boxes = torch.tensor([[2.0, 3.0, 9.0, 8.0]]).expand(3, -1)
    reference = tv.resized_crop(images, 2, 3, 9, 8, [16, 16], antialias=True)
    torch.testing.assert_close(ops.resized_crop(images, boxes, None, 16), reference, atol=1e-4, rtol=0)
    ramp = torch.arange(16.0).div(15).expand(50, 3, 16, 16)
    extent = (applied("crop", ramp).amax((1, 2, 3)) - applied("crop", ramp).amin((1, 2, 3))).clamp(0, 1)
    assert extent.max() > 0.8
    assert extent.min() < 0.5


def test_jitter_changes_colours_alone_and_differently_in_every_image():
    image = torch.tensor([0.6, 0.4, 0.3]).view(1, 3, 1, 1).expand(50, 3, 8, 8)
    jittered = applied("jitter", image)
    assert (jittered - jittered[:, :, :1, :1]).abs().max() < 1e-5
    colours = jittered[:, :, 0, 0]
    assert len(colours.mul(1000).round().unique(dim=0)) > 45
    assert colours.mean(1).std() > 0.1


# --- names, normalisation, randomness ---


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_one_keeps_the_form_and_leaves_its_input(name):
    views = ops.normalize(pictures(4, 32), MEAN, STD)
    before = views.clone()
    out = transform(views, [name], MEAN, STD, torch.Generator().manual_seed(0))
    assert torch.equal(views, before)
    assert out.shape == views.shape
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.isfinite().all()
    assert (out - views).abs().max() > 0.05


@pytest.mark.parametrize("name", TRANSFORMS)
def test_normalisation_makes_no_difference(name):
    images = pictures(4, 32)
    views = ops.normalize(images, MEAN, STD)
    normalised = transform(views, [name], MEAN, STD, torch.Generator().manual_seed(3))
    torch.testing.assert_close(normalised, ops.normalize(applied(name, images, seed=3), MEAN, STD), atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(TRANSFORMS.keys() - {"flip", "grayscale", "sobel", "solarize"}))
def test_the_generator_decides_all(name):
    images = pictures(4, 32)
    torch.manual_seed(0)
    first = applied(name, images)
    torch.manual_seed(1)
    assert torch.equal(applied(name, images), first)
    assert not torch.equal(applied(name, images, seed=2), first)


def test_they_are_applied_in_the_order_given():
    images = pictures()
    both = transform(images, ["solarize", "grayscale"], *ORIGINAL)
    torch.testing.assert_close(both, applied("grayscale", applied("solarize", images)))
    other = transform(images, ["grayscale", "solarize"], *ORIGINAL)
    torch.testing.assert_close(other, applied("solarize", applied("grayscale", images)))
    assert (both - other).abs().max() > 0.1


def test_none_at_all_is_the_identity():
    views = ops.normalize(pictures(), MEAN, STD)
    torch.testing.assert_close(transform(views, [], MEAN, STD), views, atol=1e-5, rtol=0)


def test_under_autocast_they_are_as_exact():
    images = pictures(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = applied("blur", images)
    assert torch.equal(mixed, applied("blur", images))


@pytest.mark.parametrize(
    ("names", "says"),
    [((), "at least one"), (("blurr",), "did you mean 'blur'"), (("blur", "blur"), "once")],
)
def test_names_that_cannot_be_are_refused(names, says):
    with pytest.raises(ValueError, match=says):
        check_names(names)


def test_all_names_may_be_given_at_once():
    assert check_names(NAMES) == NAMES
