"""Augmentations as a whole: the contract for every registered one, the settings, kornia's augmentations."""

import io
import subprocess
import sys
import tarfile

import kornia.augmentation
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from sslkit import plugins
from sslkit.augment import (
    Augmentation,
    BeasseAugmentation,
    Blur,
    BYOLAugmentation,
    DigitAugmentation,
    Flip,
    Jitter,
    MultiViewAugmentation,
    PlainAugmentation,
    SimCLRAugmentation,
    SmallAugmentation,
)
from sslkit.config.layers import Mistakes, nest, parse_words
from sslkit.config.plain import typed
from sslkit.errors import UserError

MEAN, STD = (0.48, 0.45, 0.41), (0.23, 0.22, 0.21)
NAMES = [c.name for c in plugins.components("augmentations") if c.distribution == "sslkit"]


def photos(count: int = 6, size: int = 32, seed: int = 0) -> torch.Tensor:
    """uint8 [count, 3, size, size], the channels_last view of NHWC memory that loaders give."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return images.mul(255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def build(augmentation: type[Augmentation], size: int = 32, **settings) -> Augmentation:
    return augmentation(augmentation.Config.model_validate(settings), size, MEAN, STD)


def make(name: str, size: int = 32, **settings) -> Augmentation:
    return build(plugins.find("augmentations", name), size, **settings)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def denormalize(views: torch.Tensor) -> torch.Tensor:
    return views * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


def test_the_built_in_augmentations_are_registered_with_a_summary():
    assert {"simclr", "byol", "mocov2", "small", "digits", "none"} <= set(NAMES)
    assert all(c.summary for c in plugins.components("augmentations"))


def test_listing_the_augmentations_imports_no_torch():
    code = (
        "import sys, sslkit.augment; from sslkit import plugins; plugins.names('augmentations'); "
        "[c.summary for c in plugins.components('augmentations')]; "
        "sys.exit(bool({'torch', 'numpy', 'kornia'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("source", "size"), [(32, 32), (48, 32), (24, 32)])
def test_views_have_the_shape_type_and_memory_of_the_contract(name, source, size):
    images = photos(5, source)
    before = images.clone()
    augmentation = make(name, size)
    (views,) = augmentation(images, seeded())
    assert views.shape == (augmentation.n_views * 5, 3, size, size)
    assert views.dtype == torch.float32
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert not views.requires_grad
    assert torch.equal(images, before)
    pixels = denormalize(views)
    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_decides_everything(name):
    augmentation, images = make(name), photos()
    (first,), (again,) = augmentation(images, seeded(1)), augmentation(images, seeded(1))
    assert torch.equal(first, again)
    torch.manual_seed(5)
    (free,) = augmentation(images)
    torch.manual_seed(5)
    assert torch.equal(free, augmentation(images)[0])
    if name != "none":
        assert not torch.equal(first, augmentation(images, seeded(2))[0])
        generator = seeded(1)
        augmentation(images, generator)
        assert not torch.equal(first, augmentation(images, generator)[0])


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
def test_the_views_of_an_image_differ(name):
    augmentation = make(name, views=2)
    views = augmentation(photos(16), seeded())[0].chunk(augmentation.n_views)
    assert ((views[0] - views[1]).abs().amax((1, 2, 3)) > 0.01).float().mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_config_survives_its_own_yaml(name):
    config = plugins.find("augmentations", name).Config()
    assert type(config).model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_help_text(name):
    augmentation = plugins.find("augmentations", name)
    for field, info in augmentation.Config.model_fields.items():
        assert info.description, field
        for inner, inner_info in getattr(info.annotation, "model_fields", {}).items():
            assert inner_info.description, f"{field}.{inner}"


def test_none_is_the_image_resized_and_normalised():
    images = photos(4, 48)
    first, second, third = make("none", 32, views=3)(images, seeded())[0].chunk(3)
    expected = tv.normalize(tv.resize(images.float() / 255, [32, 32], antialias=True), list(MEAN), list(STD))
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-4)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_views_come_in_blocks_in_the_order_of_the_images():
    images = torch.arange(8, dtype=torch.uint8).mul(30).view(8, 1, 1, 1).expand(8, 3, 32, 32)
    views = denormalize(
        build(MultiViewAugmentation, crop={"scale": (0.1, 1.0)}, flip={"p": 0.5}, views=3)(images, seeded())[0]
    )
    torch.testing.assert_close(views.mean((1, 2, 3)), torch.arange(8).mul(30).div(255).repeat(3), rtol=0, atol=1e-5)


def test_flip_mirrors_at_its_rate_in_each_view():
    images = photos(1).expand(400, -1, -1, -1)
    views = build(MultiViewAugmentation, flip={"p": (0.25, 1.0)})(images, seeded())[0]
    plain = build(PlainAugmentation, views=1)(images[:1], seeded())[0]
    mirrored = (views - plain.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert mirrored.view(2, -1).float().mean(1).tolist() == pytest.approx([0.25, 1.0], abs=0.06)


def test_byol_blurs_the_first_view_and_solarizes_only_the_second():
    # A fine chessboard of black and light grey: blur mixes the two, solarize brings the light down to 0.2.
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 204).to(torch.uint8)
    augmentation = make(
        "byol",
        crop={"scale": (1, 1), "ratio": (1, 1)},
        jitter={"p": 0},
        flip={"p": 0},
        blur={"sigma": (2, 2)},
    )
    views = denormalize(augmentation(board.expand(500, 3, 32, 32), seeded())[0]).reshape(2, 500, -1)
    top = views.amax(2)
    blurred, solarized = top < 0.79, top < 0.21
    assert blurred[0].all()
    assert not solarized[0].any()
    assert (blurred & ~solarized)[1].float().mean().item() == pytest.approx(0.1, abs=0.04)
    assert solarized[1].float().mean().item() == pytest.approx(0.2 * 0.9, abs=0.05)


def test_autocast_does_not_reach_the_views():
    augmentation, images = make("simclr"), photos()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = augmentation(images, seeded())
    assert torch.equal(inside, augmentation(images, seeded())[0])


def test_the_papers_settings():
    simclr, byol, small = SimCLRAugmentation.Config(), BYOLAugmentation.Config(), SmallAugmentation.Config()
    jitter = simclr.jitter
    assert (jitter.p, jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (
        0.8,
        0.8,
        0.8,
        0.8,
        0.2,
    )
    assert (simclr.grayscale.p, simclr.blur.p, simclr.blur.sigma, simclr.crop.scale) == (
        0.2,
        0.5,
        (0.1, 2),
        (0.08, 1),
    )
    jitter = byol.jitter
    assert (jitter.p, jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (
        0.8,
        0.4,
        0.4,
        0.2,
        0.1,
    )
    assert (byol.grayscale.p, byol.blur.p, byol.solarize.p) == (0.2, (1.0, 0.1), (0.0, 0.2))
    assert (small.blur.p, small.jitter.strength) == (0.0, 0.5)
    assert (DigitAugmentation.Config().flip.p, DigitAugmentation.Config().jitter.p) == (0.0, 0.0)


def test_crops_and_colours_exclude_each_other_view_by_view():
    """Beasse and Kabouri's Algorithm 1: the same draws give one chain's result or the other's."""
    images = photos(300)
    (mixed,), (cropped,), (coloured,) = (build(BeasseAugmentation, either=p)(images, seeded()) for p in (0.5, 1, 0))
    took_crop, took_colour = ((mixed == chain).flatten(1).all(1) for chain in (cropped, coloured))
    assert torch.equal(took_crop, ~took_colour)
    first, second = took_crop.chunk(2)
    assert took_crop.float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert (first != second).float().mean().item() == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize(
    ("either", "without", "within"),
    [
        (1, {"jitter": {"brightness": 0.9}}, {"crop": {"scale": (0.1, 0.2)}}),
        (0, {"crop": {"scale": (0.1, 0.2)}}, {"jitter": {"brightness": 0.9}}),
    ],
)
def test_a_chain_has_nothing_of_the_other(either, without, within):
    images = photos()
    settings = {"either": either, "flip": {"p": 0}}
    (views,), (same,), (others,) = (
        build(BeasseAugmentation, **settings, **more)(images, seeded()) for more in ({}, without, within)
    )
    assert torch.equal(views, same)
    assert ((views - others).abs().amax((1, 2, 3)) > 0.01).all()


def test_beasse_and_kabouris_settings():
    config = plugins.find("augmentations", "beasse").Config()
    assert (config.crop.scale, config.crop.ratio, config.flip.p, config.either) == ((0.7, 1.0), (0.8, 1.2), 0.3, 0.5)
    assert config.jitter == Jitter(p=1, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05)
    assert (config.grayscale.p, config.blur.p, config.solarize.p) == (0, 0, 0)


def test_one_branch_alone_is_transformed_from_a_crop_that_both_share():
    """SimCLR, Figure 5: t(x) on one branch, the identity on the other, of one and the same crop x."""
    images = photos(6)
    words = ["augment.shared.p=1", "augment.crop.p=[1, 0]", "augment.flip.p=[0.5, 0]", "augment.jitter.p=[1, 0]"]
    settings = from_words(*words, "augment.grayscale.p=0", "augment.blur.p=0")
    augmentation = SimCLRAugmentation(settings, 32, MEAN, STD)
    changed, plain = augmentation(images, seeded())[0].chunk(2)
    boxes = augmentation.draw(images, seeded()).shared
    expected = [
        tv.resized_crop(image.float() / 255, *map(int, box), [32, 32], antialias=True)
        for image, box in zip(images, boxes)
    ]
    torch.testing.assert_close(denormalize(plain), torch.stack(expected), rtol=0, atol=1e-5)
    assert ((changed - plain).abs().amax((1, 2, 3)) > 0.05).all()


def from_words(
    *words: str, augmentation: type[MultiViewAugmentation] = SimCLRAugmentation
) -> MultiViewAugmentation.Config:
    """The settings that `sslkit run augment.<key>=<value> ...` gives an augmentation."""
    mistakes = Mistakes()
    given = {k.removeprefix("augment."): v for k, v in parse_words(words, mistakes).items()}
    mistakes.stop()
    return augmentation.Config.model_validate(typed(nest(given), augmentation.Config))


def test_one_setting_of_a_step_leaves_the_augmentations_others():
    config = from_words("augment.jitter.p=0.5", "augment.blur.p=0")
    assert config.jitter == SimCLRAugmentation.Config().jitter.model_copy(update={"p": 0.5})
    assert config.blur == Blur(p=0, sigma=(0.1, 2.0))
    assert config.crop == SimCLRAugmentation.Config().crop


def test_a_mapping_and_a_whole_step_are_taken_too():
    assert from_words("augment.jitter={p: 0.5}") == from_words("augment.jitter.p=0.5")
    assert SimCLRAugmentation.Config(flip=Flip()).flip.p == 0


def test_a_third_party_augmentation_is_a_few_lines():
    class Mine(MultiViewAugmentation):
        """Only flips."""

        class Config(MultiViewAugmentation.Config):
            flip: Flip = Flip(p=1.0)

    assert Mine.Config.model_validate({"flip": {}}).flip.p == 1
    assert Mine.Config.model_fields["flip"].description == MultiViewAugmentation.Config.model_fields["flip"].description
    images = photos(2)
    plain = build(PlainAugmentation)(images)[0]
    torch.testing.assert_close(build(Mine)(images)[0], plain.flip(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("augment.blur.p=[1, 0.5, 0]", r"blur\.p has 3 numbers for 2 views"),
        ("augment.views=3", r"blur\.p has 2 numbers for 3 views"),
        ("augment.crop.p=[1, 0, 0]", r"crop\.p has 3 numbers for 2 views"),
        ("augment.either=[1, 0, 0]", "either has 3 numbers for 2 views"),
        ("augment.shared.p=[1, 0]", "shared\\.p is one number"),
        ("augment.jitter.p=2", "between 0 and 1"),
        ("augment.jitter.q=1", "Extra inputs"),
        ("augment.jitters.p=1", "Extra inputs"),
        ("augment.jitter=3", "valid dictionary"),
        ("augment.extra=RandomErasing", "must be a list"),
        ("augment.extra=[RandomErasin]", "did you mean 'RandomErasing'"),
        ("augment.extra=[{RandomErasing: {q: 1}}]", "RandomErasing does not take .*'q'"),
        ("augment.extra=[{RandomErasing: {scale: wide}}]", "RandomErasing does not take"),
        ("augment.extra=[{RandomErasing: 1}]", "must be a mapping"),
        ("augment.extra=[{RandomErasing: {}, RandomInvert: {}}]", "one name with its options"),
        ("augment.extra=[3]", "one name with its options"),
        ("augment.extra=[AugmentationSequential]", "no image augmentation"),
    ],
)
def test_wrong_settings_are_described(word, message):
    with pytest.raises(ValueError, match=message):
        from_words(word, augmentation=BYOLAugmentation)


def test_extra_takes_kornias_augmentations_from_the_command_line():
    word = "augment.extra=[RandomInvert, {RandomErasing: {p: 1.0, scale: [0.25, 0.25], ratio: [1, 1]}}]"
    config = from_words(word, augmentation=PlainAugmentation)
    assert (
        from_words(
            f"augment.extra={yaml.safe_dump(config.model_dump(mode='json')['extra'], default_flow_style=True)}"
        ).extra
        == config.extra
    )
    augmentation = PlainAugmentation(config, 32, MEAN, STD)
    assert [type(step).__name__ for step in augmentation.extra] == ["RandomInvert", "RandomErasing"]
    assert augmentation.extra[1].p == 1.0
    views = denormalize(augmentation(torch.full((40, 3, 32, 32), 51, dtype=torch.uint8), seeded())[0])
    erased = (views.abs() < 1e-5).float().mean((1, 2, 3))
    assert erased.tolist() == pytest.approx([0.25] * 80, abs=0.05)
    inverted = (views.amax((1, 2, 3)) - 0.8).abs() < 1e-5
    assert inverted.float().mean().item() == pytest.approx(0.5, abs=0.2)


def test_extra_is_what_kornia_does_to_the_stacked_views():
    images = photos()
    (ours,) = build(
        PlainAugmentation, extra=[{"RandomSolarize": {"p": 1.0, "thresholds": [0.3, 0.3], "additions": 0}}]
    )(images)
    plain = denormalize(build(PlainAugmentation)(images)[0])
    solarize = kornia.augmentation.RandomSolarize((0.3, 0.3), 0, p=1.0)
    torch.testing.assert_close(denormalize(ours), solarize(plain), rtol=0, atol=1e-5)


def test_extra_follows_the_generator_and_leaves_the_global_one():
    augmentation = build(
        PlainAugmentation, extra=["RandomGaussianNoise", {"RandomRotation": {"degrees": 30.0, "p": 1.0}}]
    )
    images, generator = photos(), seeded(3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    (first,) = augmentation(images, generator)
    (second,) = augmentation(images, generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    torch.rand(3)
    assert torch.equal(augmentation(images, seeded(3))[0], first)


def test_building_an_augmentation_leaves_the_global_generator():
    state = torch.get_rng_state()
    build(PlainAugmentation, extra=["RandomPerspective"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"Resize": {"size": [16, 16]}}, "Resize makes .*16, 16.* of 32 px"),
        (
            {"RandomGaussianBlur": {"kernel_size": [99, 99], "sigma": [1, 2]}},
            "RandomGaussianBlur fails on 32 px",
        ),
    ],
)
def test_extra_that_cannot_run_on_the_views_is_a_users_mistake(extra, message):
    with pytest.raises(UserError, match=message):
        build(PlainAugmentation, extra=[extra])


def test_extra_has_no_weights_in_the_state():
    assert build(PlainAugmentation, extra=["RandomPerspective"]).state_dict() == {}


@pytest.mark.parametrize("name", NAMES)
def test_real_photographs_keep_their_content(shared, name):
    """Averaged over many views a photograph is still like itself, and unlike the other photographs."""
    images = real_photographs(shared / "cifar10-2k.tar", 8)
    augmentation = make(name, jitter={"p": 0}, views=2, crop={"scale": (0.5, 1.0)}, flip={"p": 0})
    many = denormalize(torch.stack([augmentation(images, seeded(s))[0] for s in range(8)]))
    average = many.view(16, 8, 3, 32, 32).mean(0).flatten(1)
    likeness = torch.corrcoef(torch.cat([average, (images.float() / 255).flatten(1)]))[:8, 8:]
    assert torch.equal(likeness.argmax(1), torch.arange(8))


def real_photographs(archive, count: int) -> torch.Tensor:
    with tarfile.open(archive) as files:
        members = [m for m in files.getmembers() if m.isfile() and "/train/" in m.name][:: 1600 // count][:count]
        pictures = [Image.open(io.BytesIO(files.extractfile(m).read())).convert("RGB") for m in members]
    return torch.stack([torch.from_numpy(np.array(p)) for p in pictures]).permute(0, 3, 1, 2)
