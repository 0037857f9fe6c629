"""Every image operation, at fixed parameters, against torchvision's."""

from itertools import permutations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from sslkit.augment import ops

ATOL = 1e-4
LEVEL = 1 / 255 + 1e-6


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth colours with sharp edges, a grey image, a black one and one of pure colours among them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images[:, :, height // 3 : height // 2] = torch.rand(count, 3, 1, 1, generator=generator)
    images[-1] = (torch.rand(3, height, width, generator=generator) > 0.5).float()
    images[-2] = images[-2].mean(0)
    images[-3] = 0
    return images.clamp(0, 1)


def as_uint8(images: torch.Tensor) -> torch.Tensor:
    return images.mul(255).round().to(torch.uint8)


BOXES = [
    ((32, 32), (0, 0, 32, 32), 32),
    ((32, 32), (5, 9, 11, 17), 32),
    ((32, 32), (31, 31, 1, 1), 32),
    ((32, 32), (3, 2, 20, 28), 8),
    ((96, 96), (0, 0, 96, 96), 32),
    ((96, 96), (10, 20, 80, 60), 64),
    ((96, 96), (10, 20, 30, 25), 96),
    ((160, 160), (7, 1, 150, 133), 96),
    ((40, 61), (2, 30, 37, 31), 48),
    ((61, 40), (0, 0, 61, 40), 24),
]


@pytest.mark.parametrize(("source", "box", "size"), BOXES)
@pytest.mark.parametrize("flip", [False, True])
def test_resized_crop_is_torchvisions(source, box, size, flip):
    images = pictures(4, *source)
    ours = ops.resized_crop(images, torch.tensor([box] * 4).float(), torch.tensor([flip] * 4), size)
    theirs = tv.resized_crop(images, *box, [size, size], antialias=True)
    theirs = tv.horizontal_flip(theirs) if flip else theirs
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL)


@pytest.mark.parametrize(("source", "box", "size"), BOXES)
def test_resized_crop_of_bytes_is_torchvisions_within_a_grey_level(source, box, size):
    images = as_uint8(pictures(4, *source))
    ours = ops.resized_crop(ops.to_float(images), torch.tensor([box] * 4).float(), None, size)
    theirs = tv.resized_crop(images, *box, [size, size], antialias=True)
    torch.testing.assert_close(ours, theirs / 255, rtol=0, atol=LEVEL)


def test_resized_crop_takes_each_image_its_own_box_and_flip_in_view_blocks():
    images = pictures(4, 32, 32)
    boxes = torch.tensor([(i, 2 * i, 10 + i, 12 + i % 4) for i in range(8)]).float()
    flip = torch.arange(8) % 3 == 0
    ours = ops.resized_crop(images, boxes, flip, 24)
    for i, (box, mirrored) in enumerate(zip(boxes.int().tolist(), flip.tolist())):
        theirs = tv.resized_crop(images[i % 4], *box, [24, 24], antialias=True)
        theirs = tv.horizontal_flip(theirs) if mirrored else theirs
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=ATOL)


def test_a_whole_image_at_its_own_size_comes_back_exactly():
    images = pictures(4, 32, 32)
    assert torch.equal(ops.resized_crop(images, torch.tensor([[0.0, 0, 32, 32]] * 4), None, 32), images)


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_affine_is_torchvisions(size):
    images = pictures(6, *size)
    angles, shears = torch.tensor([-30.0, 0, 12, 45, 90, 170]), torch.tensor([0.0, 20, -10, 15, 0, 30])
    ours = ops.affine(images, angles, shears)
    for image, view, angle, shear in zip(images, ours, angles.tolist(), shears.tolist()):
        theirs = tv.affine(image, angle, [0, 0], 1.0, [shear, 0.0], tv.InterpolationMode.BILINEAR)
        torch.testing.assert_close(view, theirs, rtol=0, atol=1e-4)


def test_affine_without_angle_is_the_identity_in_every_padding():
    images, zero = pictures(4, 32, 32), torch.zeros(4)
    for padding in ("zeros", "border", "reflection"):
        torch.testing.assert_close(ops.affine(images, zero, zero, padding), images, rtol=0, atol=1e-5)


def test_affine_padding_fills_the_corners():
    white = torch.ones(1, 3, 32, 32)
    corners = {
        p: ops.affine(white, torch.tensor([45.0]), torch.zeros(1), p)[0, 0, 0, 0].item()
        for p in ("zeros", "border", "reflection")
    }
    assert corners == pytest.approx({"zeros": 0, "border": 1, "reflection": 1})


ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def in_turn(image: torch.Tensor, factors: list[float], order: list[int]) -> torch.Tensor:
    for operation in order:
        image = ADJUST[operation](image, factors[operation])
    return image


FACTORS = [(op, f) for op in (ops.BRIGHTNESS, ops.CONTRAST, ops.SATURATION) for f in (0.0, 0.4, 1.0, 1.7)]
FACTORS += [(ops.HUE, f) for f in (-0.5, -0.2, 0.0, 0.1, 1 / 3, 0.5)]


@pytest.mark.parametrize(("operation", "factor"), FACTORS)
def test_each_colour_change_alone_is_torchvisions(operation, factor):
    images = pictures(6, 16, 16)
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 6)
    factors[:, operation] = factor
    ours = ops.jitter(images, factors, torch.arange(4).expand(6, 4))
    torch.testing.assert_close(ours, ADJUST[operation](images, factor), rtol=0, atol=ATOL)


def test_jitter_is_torchvisions_in_every_order():
    orders = list(permutations(range(4)))
    images = pictures(24, 16, 16)
    generator = torch.Generator().manual_seed(1)
    factors = torch.rand(24, 4, generator=generator) * 1.6 + 0.2
    factors[:, ops.HUE] = (factors[:, ops.HUE] - 1) / 2
    for shift in (0, 7, 13):  # each order meets several images
        turned = torch.tensor(orders).roll(shift, 0)
        ours = ops.jitter(images, factors, turned)
        theirs = [in_turn(i, f, o) for i, f, o in zip(images, factors.tolist(), turned.tolist())]
        torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=ATOL)


def test_jitter_without_hue_is_torchvisions_in_every_order():
    orders = torch.tensor(list(permutations(range(3))))
    images = pictures(6, 16, 16)
    factors = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) * 1.8
    theirs = [in_turn(i, f, o) for i, f, o in zip(images, factors.tolist(), orders.tolist())]
    torch.testing.assert_close(ops.jitter(images, factors, orders), torch.stack(theirs), rtol=0, atol=ATOL)


def test_jitter_by_nothing_is_the_identity():
    images = pictures(6, 16, 16)
    order = torch.arange(4).expand(6, 4)
    ours = ops.jitter(images, torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 6), order)
    torch.testing.assert_close(ours, images, rtol=0, atol=1e-6)


def test_grayscale_is_torchvisions_where_the_mask_says():
    images = pictures(6, 16, 16)
    mask = torch.arange(6) % 2 == 0
    ours = ops.grayscale(images, mask)
    theirs = tv.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=ATOL)
    assert torch.equal(ours[~mask], images[~mask])


@pytest.mark.parametrize(("size", "kernel_size"), [((96, 96), 9), ((32, 32), 3), ((20, 31), 23), ((8, 8), 1)])
def test_gaussian_blur_is_torchvisions(size, kernel_size):
    images = pictures(4, *size)
    sigmas = torch.tensor([0.1, 0.7, 1.3, 2.0])
    ours = ops.gaussian_blur(images, sigmas, kernel_size)
    for image, view, sigma in zip(images, ours, sigmas.tolist()):
        theirs = tv.gaussian_blur(image, [kernel_size, kernel_size], [sigma, sigma])
        torch.testing.assert_close(view, theirs, rtol=0, atol=ATOL)


def test_solarize_is_torchvisions_where_the_mask_says():
    images = pictures(6, 16, 16)
    mask = torch.arange(6) % 2 == 1
    ours = ops.solarize(images, 0.5, mask)
    torch.testing.assert_close(ours[mask], tv.solarize(images, 0.5)[mask], rtol=0, atol=ATOL)
    assert torch.equal(ours[~mask], images[~mask])


def test_normalize_is_torchvisions_and_channels_last():
    images = pictures(4, 16, 16)
    mean, std = (0.48, 0.45, 0.41), (0.23, 0.22, 0.21)
    ours = ops.normalize(images, mean, std)
    torch.testing.assert_close(ours, tv.normalize(images, list(mean), list(std)), rtol=0, atol=1e-5)
    assert ours.is_contiguous(memory_format=torch.channels_last)


OPERATIONS = {
    "to_float": lambda x: ops.to_float(as_uint8(x)),
    "resized_crop": lambda x: ops.resized_crop(x, torch.tensor([[1.0, 2, 9, 8]] * 4), torch.ones(4) > 0, 12),
    "affine": lambda x: ops.affine(x, torch.full((4,), 10.0), torch.full((4,), 5.0)),
    "jitter": lambda x: ops.jitter(x, torch.tensor([[0.8, 1.2, 0.5, 0.1]] * 4), torch.arange(4).expand(4, 4)),
    "grayscale": lambda x: ops.grayscale(x, torch.ones(4) > 0),
    "gaussian_blur": lambda x: ops.gaussian_blur(x, torch.ones(4), 3),
    "solarize": lambda x: ops.solarize(x, 0.5, torch.ones(4) > 0),
    "normalize": lambda x: ops.normalize(x, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_leave_their_input_and_do_not_mind_its_memory_layout(name):
    images = pictures(4, 16, 16)
    before = images.clone()
    result = OPERATIONS[name](images)
    assert torch.equal(images, before)
    for layout in (images.contiguous(memory_format=torch.channels_last), images[:, :, :, ::1].mT.mT):
        torch.testing.assert_close(OPERATIONS[name](layout), result, rtol=0, atol=1e-6)
    planar = images.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(OPERATIONS[name](planar), result, rtol=0, atol=1e-6)
    assert torch.equal(planar, before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_compile_into_one_graph(name):
    compiled = torch.compile(OPERATIONS[name], fullgraph=True, backend="eager")
    images = pictures(4, 16, 16)
    torch.testing.assert_close(compiled(images), OPERATIONS[name](images))


def test_only_bytes_are_taken_for_images():
    with pytest.raises(TypeError, match="uint8"):
        ops.to_float(torch.zeros(1, 3, 8, 8))
