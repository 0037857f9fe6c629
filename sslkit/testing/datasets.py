"""The contract of a data set."""

from pathlib import Path
from typing import Any

import numpy as np

from sslkit.config.run import RunConfig
from sslkit.testing.contract import checked_settings, expect


def check_dataset(source_class: type, **options: Any) -> None:
    """Check a data set that is available locally (`options` give its path): images, labels, names, fingerprints."""
    config = checked_settings(source_class, options)
    mistakes = list(config.check())
    expect(not mistakes, f"check() finds mistakes in these options: {'; '.join(mistakes)}")
    source: Any = source_class(config)
    expect(source.claims(Path("no/such/path")) is False, "claims(path) must be False for what it does not read")
    pretrain, train, test = (source.images(role) for role in ("pretrain", "train", "test"))
    expect(pretrain is not None, 'images("pretrain") must give the images to pre-train on')
    expect(source.count() in (None, len(pretrain)), f"count() says {source.count()} of {len(pretrain)} images")
    again: Any = source_class(config)
    for role, images in (("pretrain", pretrain), ("train", train), ("test", test)):
        if images is not None:
            _check_images(role, images)
            same = images.fingerprint() == again.images(role).fingerprint()
            expect(same, f"{role}: the fingerprint of unchanged images must stay the same")
    for role, images in (("train", train), ("test", test)):
        expect(images is None or images.labels is not None, f"the {role} images must be labelled, or None")
    if train is not None and test is not None:
        expect(train.classes == test.classes, "train and test must have the same classes in the same order")
    _check_data_advice(source)


def _check_images(role: str, images: Any) -> None:
    expect(len(images) > 0, f"{role}: there must be images; give None where the data has none")
    expect(isinstance(images.fingerprint(), str), f"{role}: the fingerprint must be a string")
    digests = images.digests
    fits = digests is None or (digests.dtype == np.uint8 and digests.shape == (len(images), 16))
    expect(fits, f"{role}: digests must be uint8 [{len(images)}, 16], or None")
    for index in {0, len(images) // 2, len(images) - 1}:
        name = images.name(index)
        expect(isinstance(name, str) and bool(name), f"{role}: name({index}) must be a name for messages")
        pixels = np.asarray(images.load(index))
        expect(
            pixels.dtype == np.uint8 and pixels.ndim in (2, 3) and min(pixels.shape[:2]) > 0,
            f"{role}: load() must give a PIL image or uint8 [H, W, 3], not {pixels.dtype} {pixels.shape}",
        )
    if images.labels is not None:
        _check_labels(role, images)


def _check_labels(role: str, images: Any) -> None:
    labels = np.asarray(images.labels)
    expect(labels.dtype == np.int64, f"{role}: labels must be int64, not {labels.dtype}")
    expect(labels.shape == (len(images),), f"{role}: {labels.shape} labels for {len(images)} images")
    fits = labels.min() >= -1 and labels.max() < len(images.classes)
    expect(fits, f"{role}: labels must be numbers of the {len(images.classes)} classes, or -1 where unknown")
    expect(all(isinstance(c, str) for c in images.classes), f"{role}: classes must be names")


def _check_data_advice(source: Any) -> None:
    for key in source.defaults:
        expect(key.partition(".")[0] in RunConfig.model_fields, f"defaults: {key} is not a setting of a run")
