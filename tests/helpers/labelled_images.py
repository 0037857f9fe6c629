"""What tests give evaluators to judge: features at hand, and coloured images packed for real."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from sslkit.data import ArrayImages, pack
from sslkit.evaluation import Features, Preprocessing, Subject

HOSTILE = ("<script>alert(1)</script>", "$x_1^{", "🐈‍⬛ chat", "n" * 300, 'a "quoted"\nname', "", "猫", "=1+1")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def clusters(n, classes=8, width=24, spread=2.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    y = rng.integers(0, classes, n)
    return torch.tensor(centres[y] + spread * rng.normal(size=(n, width)), dtype=torch.float32), torch.tensor(y)


def given_features():
    """Eight classes that overlap."""
    return Features(*clusters(400), *clusters(200, seed=1), 8)


class Given:
    """A subject whose features are at hand, and nothing else."""

    seed, labelled = 0, True

    def __init__(self, features):
        self.features = features


class Flat(nn.Module):
    """Features that are the image itself."""

    width = 3 * 16 * 16

    def forward(self, images):
        return images.flatten(1)


def coloured(path, n, classes=HOSTILE, size=16, seed=0, labels=None, depth=150):
    """Noise on the colour of the class, packed for real."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(n) % len(classes) if labels is None else labels
    paint = np.random.default_rng(5).integers(0, depth, (len(classes), 3))
    pixels = (rng.integers(0, 100, (n, size, size, 3)) + paint[labels][:, None, None]).astype(np.uint8)
    images = ArrayImages(lambda: (pixels, labels), f"{n} {seed} {classes}", classes)
    return pack(images, path, size=size, mode="raw", workers=1)


def coloured_subject(tmp_path):
    """Two stores of coloured images under hostile names; pictures go to tmp_path / "run"."""
    stores = coloured(tmp_path / "a.beton", 120), coloured(tmp_path / "b.beton", 48, seed=1)
    options = {"image_size": 16, "mean": MEAN, "std": STD, "batch_size": 20}
    return subject_of(Flat(), *stores, folder=tmp_path / "run", **options)


def subject_of(
    backbone, train, test, *, image_size, mean, std, device="cpu", precision="fp32", batch_size=256, **about
):
    """A backbone and labelled images, preprocessed as is said, on the CPU unless another device is named."""
    how = Preprocessing(image_size, mean, std, torch.device(device), precision, batch_size)
    return Subject(backbone, train, test, how, **about)


def written(subject, tmp_path):
    return {file["path"].split("/")[-1]: tmp_path / "run" / file["path"] for file in subject.files}


def photo(size=40, n=2):
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.random((n, size, size, 3)), (0, 3, 3, 0))
    low, high = smooth.min(), smooth.max()
    pixels = (255 * (smooth - low) / (high - low)).astype(np.uint8)
    return pixels, torch.from_numpy(pixels).permute(0, 3, 1, 2)


def hwc(images):
    return images.permute(0, 2, 3, 1).numpy().astype(int)
