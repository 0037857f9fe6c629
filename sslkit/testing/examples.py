"""Example components for the checks: the quickest backbone, a few images, and well-separated classes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.data import ArrayImages, Store, pack
from sslkit.evaluation.extraction import Features, Preprocessing
from sslkit.evaluation.subject import Subject

IMAGES = 8
"""Number of images in a batch."""


class TinyBackbone(nn.Sequential):
    """Two convolutions: the quickest backbone, [N, 3, H, W] -> [N, 16]."""

    width = 16

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, self.width, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def small_images(size: int) -> Tensor:
    """Random uint8 [IMAGES, 3, size, size], channels_last as loaders give them: gradients with some noise."""
    ramp = torch.linspace(0, 200, size)
    images = (ramp[:, None] * torch.rand(IMAGES, 3, 1, 1) + ramp * torch.rand(IMAGES, 3, 1, 1)) / 2
    noisy = images + 30 * torch.rand(IMAGES, 3, size, size)
    return noisy.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def example_subject(folder: Path) -> Subject:
    """A subject with packed images of three colours, and features in three separate clusters."""

    class Example(Subject):
        """A subject with given features, so that every evaluator can tell the classes apart."""

        features = _clusters()

    train, test = (
        _coloured("train", Example.features.train_y, folder),
        _coloured("test", Example.features.test_y, folder),
    )
    return _subject(Example, train, test, folder)


def unlabelled_subject(folder: Path) -> Subject:
    """A subject with images of three colours that have no labels."""
    store = _coloured("pretrain", torch.arange(30) % 3, folder)
    store.labels = None
    return _subject(Subject, store, store, folder, labelled=False)


def _subject(kind: type[Subject], train: Store, test: Store, folder: Path, labelled: bool = True) -> Subject:
    return kind(
        TinyBackbone(),
        train,
        test,
        Preprocessing(24, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), torch.device("cpu")),
        initial=TinyBackbone,
        head=lambda: nn.Linear(TinyBackbone.width, 8),
        folder=folder,
        labelled=labelled,
    )


def _coloured(role: str, labels: Tensor, folder: Path) -> Store:
    noise = np.random.default_rng(len(labels)).integers(0, 100, (len(labels), 24, 24, 3))
    pixels = (noise + 150 * np.eye(3, dtype=np.int64)[labels][:, None, None]).astype(np.uint8)
    images = ArrayImages(lambda: (pixels, labels.numpy()), role, ("red", "green", "blue"))
    return pack(images, folder / f"{role}.beton", size=24, mode="raw", workers=1)


def _clusters() -> Features:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    x = 4 * F.one_hot(labels, 16).float() + 0.5 * torch.randn(90, 16, generator=generator)
    return Features(train_x=x[:60], train_y=labels[:60], test_x=x[60:], test_y=labels[60:], classes=3)
