"""The data set that needs no network: 1,797 handwritten digits that ship with scikit-learn."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit import plugins
from sslkit.data.images import ArrayImages, Role
from sslkit.data.sources.base import Source
from sslkit.data.split import stratified_split
from sslkit.errors import UserError

SIDE = 32
TRAIN = 1437


class Digits(Source):
    """1,797 real handwritten digits, 32×32 RGB: 1,437 to train on, 360 to test on; no download.

    From "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI, 1998), the copy of
    sklearn.datasets.load_digits: 8×8 pixels of 17 grey levels, enlarged four times here.
    """

    # The images are 8×8 enlarged 4×, so a stem of stride 4 loses nothing and is several times faster.
    defaults: ClassVar[dict[str, Any]] = {
        "augment.name": "digits",
        "backbone.stem": "imagenet",
        "epochs": 30,
        "batch_size": 128,
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-3,
        "optimizer.lr_scaling": "none",
        "optimizer.exempt_lr": None,
        "optimizer.weight_decay": 1e-4,
        "optimizer.weight_decay_end": None,
    }

    @classmethod
    def advice(cls, method: str) -> dict[str, Any]:
        """Run settings for about a minute on two cores.

        BYOL's own settings are meant for a thousand times as many steps: here it needs large steps, and batch norm on
        the projection against partial collapse (benchmarks/LOG.md).
        """
        advice = {**cls.defaults, "augment.views": _views_of(method)}
        if method != "byol":
            return advice
        byol = {
            "optimizer.name": "lars",
            "optimizer.lr": 2.0,
            "method.hidden": 1024,
            "method.last_norm": True,
            "method.momentum": 0.992,
        }
        return advice | byol

    def count(self) -> int:
        return TRAIN

    def images(self, role: Role) -> ArrayImages:
        part = "test" if role == "test" else "train"
        classes = tuple(map(str, range(10)))
        return ArrayImages(lambda: _read(part), f"digits-{part}-1", classes, f"digits/{part}[{{}}]".format)

    def natural_size(self) -> int:
        return SIDE


def _views_of(method: str) -> int:
    """Number of views that the method's own augmentation makes; two if the method is unknown."""
    try:
        augmentation = plugins.find("augmentations", plugins.find("methods", method).augment)
    except UserError:
        return 2
    return getattr(augmentation.Config(), "views", 2)


def _read(part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    train, test = stratified_split(labels, seed=0)
    rows = test if part == "test" else train
    return np.stack([_enlarge(image) for image in digits.images[rows]]), labels[rows]


def _enlarge(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Convert [8, 8] of 0..16 to uint8 [32, 32, 3]."""
    grey = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB"))
