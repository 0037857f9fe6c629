"""Say what a run's data hold before anything is packed: parts, classes, copies across parts, and what is left out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sslkit import plugins
from sslkit.config.base import Choice
from sslkit.data.digests import BYTES
from sslkit.data.images import Images
from sslkit.data.sources.base import Source
from sslkit.data.split import stratified_split


@dataclass(frozen=True)
class Survey:
    """What the data hold."""

    lines: tuple[str, ...] = ()
    """Sentences for a person; none for data sets that are known, or not at hand yet."""
    labelled: bool = True
    """False if there are no labelled images to train and test evaluators on."""
    unlabelled: str = ""
    """Reason why there are none."""


def survey(choice: Choice, eval_choice: Choice | None, seed: int) -> Survey:
    """Look at the data of a run as `open_stores` would, without packing. Raises UserError as it would.

    Only data sets that tell what was found, such as folders, are looked at.
    """
    pretraining = _source(choice)
    lines = pretraining.found()
    if lines:
        # Raises an error if no image can be opened.
        pretraining.image_size()
    if eval_choice is not None:
        lines += [f"eval_data: {line}" for line in _source(eval_choice).found()]
    source = _source(eval_choice or choice)
    if not source.found():
        return Survey(tuple(lines))
    digests = _evaluated(source, seed)
    if isinstance(digests, str):
        return Survey(tuple(lines), labelled=False, unlabelled=digests)
    copies = copies_across(*digests)
    return Survey((*lines, copies) if copies else tuple(lines))


def copies_across(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> str:
    """Return a sentence about test images that are exact copies of training images; "" if there are none.

    train, test: a digest of each image, uint8 [N, 16].
    """
    # Half of a digest is enough: among a million images, the odds of two equal halves are one in ten millions.
    known, tested = (np.ascontiguousarray(part).view("<u8")[:, 0] for part in (train, test))
    copies = int(np.isin(tested, known).sum())
    if not copies:
        return ""
    return f"{copies:,} of {len(tested):,} test images are exact copies of training images, which raises accuracies"


def has_classes(labels: NDArray[np.int64] | None) -> bool:
    """Return True if there are at least two classes, without which there is nothing to discriminate."""
    return labels is not None and len(np.unique(labels[labels >= 0])) > 1


def too_few(labels: NDArray[np.int64]) -> str:
    """Return the reason why none of the labelled images can be held out."""
    known = labels[labels >= 0]
    classes = len(np.unique(known))
    return f"{len(known):,} images of {classes:,} classes are too few to hold any out: a class needs two"


def _evaluated(source: Source, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | str:
    """Return the digests of the images that evaluators are trained and tested on, or the reason why there are none."""
    pretrain, train, test = (source.images(role) for role in ("pretrain", "train", "test"))
    if train is not None and test is not None and train.labels is not None and test.labels is not None:
        return _digests(train), _digests(test)
    for images in (pretrain, test):
        if images is not None and images.labels is not None and has_classes(images.labels):
            rest, held_out = stratified_split(images.labels, seed)
            digests = _digests(images)
            return (digests[rest], digests[held_out]) if len(held_out) else too_few(images.labels)
    return pretrain.unlabelled if pretrain is not None else ""


def _digests(images: Images) -> NDArray[np.uint8]:
    found = images.digests
    return np.empty((0, BYTES), np.uint8) if found is None else found


def _source(choice: Choice) -> Source:
    source: Source = plugins.find("datasets", choice.name)(choice.options)
    return source
