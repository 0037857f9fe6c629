"""Corruptions against other libraries, and the accuracy that is left under them."""

import colorsys
import io

import numpy as np
import pytest
import torch
from helpers.labelled_images import (
    coloured,
    coloured_subject,
    given_features,
    hwc,
    photo,
    written,
)
from PIL import Image
from scipy.ndimage import gaussian_filter

from sslkit.evaluation.evaluators import corruptions, logistic
from sslkit.evaluation.evaluators.robustness import Robustness

GENERATOR = torch.Generator()


@pytest.fixture
def subject(tmp_path):
    return coloured_subject(tmp_path)


@pytest.fixture(scope="module")
def features():
    return given_features()


@pytest.mark.parametrize("sigma", [0.4, 1.0, 6.0])
def test_blur_is_that_of_scipy(sigma):
    pixels, images = photo()
    expected = gaussian_filter(pixels / 255, (0, sigma, sigma, 0), mode="nearest", truncate=4)
    assert np.abs(hwc(corruptions.gaussian_blur(images, sigma, GENERATOR)) - 255 * expected).max() <= 0.51


def test_brightness_raises_the_value_of_hsv():
    pixels, images = photo(12)
    pixels[0, 0, 0] = images[0, :, 0, 0] = 0
    images[0, :, 0, 0] = 0
    expected = np.zeros(pixels.shape)
    for place in np.ndindex(pixels.shape[:3]):
        h, s, v = colorsys.rgb_to_hsv(*pixels[place] / 255)
        expected[place] = colorsys.hsv_to_rgb(h, s, min(1, v + 0.3))
    assert np.abs(hwc(corruptions.brightness(images, 0.3, GENERATOR)) - 255 * expected).max() <= 0.51


def test_contrast_draws_towards_the_mean_of_each_channel():
    pixels, images = photo()
    x = pixels / 255
    expected = np.clip((x - x.mean((1, 2), keepdims=True)) * 0.3 + x.mean((1, 2), keepdims=True), 0, 1)
    assert np.abs(hwc(corruptions.contrast(images, 0.3, GENERATOR)) - 255 * expected).max() <= 0.51


def test_noise_has_the_deviation_and_is_drawn_from_the_generator():
    grey_image = torch.full((4, 3, 50, 50), 128, dtype=torch.uint8)
    first, again = (
        corruptions.gaussian_noise(grey_image, 0.1, torch.Generator().manual_seed(s)).float() for s in (1, 1)
    )
    assert torch.equal(first, again)
    assert first.mean().item() == pytest.approx(128, abs=0.6)
    assert first.std().item() == pytest.approx(25.5, rel=0.03)


def test_jpeg_and_pixelation_are_pillows():
    pixels, images = photo()
    compressed = io.BytesIO()
    Image.fromarray(pixels[1]).save(compressed, "JPEG", quality=10)
    with Image.open(compressed) as back:
        expected = np.asarray(back)
    assert np.array_equal(hwc(corruptions.jpeg(images, 10, GENERATOR))[1], expected)
    blocks = hwc(corruptions.pixelation(images, 0.25, GENERATOR))
    means = pixels.reshape(2, 10, 4, 10, 4, 3).mean((2, 4))
    assert np.abs(blocks - means.repeat(4, 1).repeat(4, 2)).max() <= 1


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
@pytest.mark.parametrize("size", [64, 96])
def test_a_higher_severity_changes_more(name, size):
    pixels, images = photo(size)
    harm = [
        np.abs(hwc(corruptions.corrupt(name, severity, images, torch.Generator().manual_seed(0))) - pixels).mean()
        for severity in corruptions.SEVERITIES
    ]
    assert harm[0] > 0
    assert harm[4] > 1.2 * harm[0]
    assert images.equal(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_large_images_are_corrupted_more_than_small_ones():
    tested = {size: corruptions.corrupt("contrast", 1, photo(size)[1], GENERATOR).float().std() for size in (64, 65)}
    assert tested[64] > 1.5 * tested[65]


def test_robustness_is_the_probes_accuracy_on_corrupted_pixels(subject, tmp_path):
    subject.train, subject.test = (coloured(tmp_path / f"{n}.beton", n, depth=30) for n in (120, 48))
    subject.begin("robustness")
    figures = Robustness(Robustness.Config(corruptions=("contrast", "gaussian_noise")))(subject)
    f = subject.features
    probe = logistic.fit(f.train_x, f.train_y, 8)
    clean = (probe(f.test_x).argmax(1) == f.test_y).double().mean().item()
    images = torch.from_numpy(subject.test.read(range(48))).permute(0, 3, 1, 2)
    right = []
    for factor in (0.75, 0.5, 0.4, 0.3, 0.15):
        x = subject.views(corruptions.contrast(images, factor, GENERATOR)).flatten(1)
        right.append((probe(x).argmax(1) == f.test_y).double().mean().item())
    assert figures["clean_top1"] == clean
    assert figures["contrast"] == pytest.approx(np.mean(right))
    assert len({clean, *right}) > 2
    assert figures["corrupted"] == pytest.approx((figures["contrast"] + figures["gaussian_noise"]) / 2)
    lines = written(subject, tmp_path)["robustness.csv"].read_text().splitlines()
    assert [float(v) for v in lines[1].split(",")[1:]] == pytest.approx([clean, *right])


def test_an_unknown_corruption_is_a_mistake():
    with pytest.raises(ValueError, match="fog"):
        Robustness.Config(corruptions=("fog",))
