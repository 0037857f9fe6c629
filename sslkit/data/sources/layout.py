"""Read parts, classes and labels from the names of images below a folder."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from sslkit.data.pictures import printable
from sslkit.errors import UserError

TRAIN_PARTS = ("train", "training")
TEST_PARTS = ("test", "testing", "val", "valid", "validation")
"""Names of folders that are parts and not classes, ignoring case; the first one that is there is used."""
STRAY = 0.1
"""Share of images beside the class folders up to which they are strays without a class; with more, nothing is one."""


@dataclass(frozen=True)
class Part:
    """Images of one part, and their classes."""

    folder: str
    """Folder of the part, relative, with a slash at the end; "" if it is the whole."""
    names: list[str]
    """Names below the folder."""
    classes: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    """Class numbers, -1 for a picture beside the class folders; None: unlabelled."""
    unlabelled: str = ""
    """Reason why there are no labels."""


@dataclass(frozen=True)
class Layout:
    """Parts that a folder consists of."""

    train: Part
    test: Part | None = None
    unused: dict[str, int] = field(default_factory=dict)
    """Number of images beside the two parts, by the folder that they lie in."""


def read_layout(names: Sequence[str]) -> Layout:
    """Divide image names, relative with slashes, into a training and a test part.

    A folder around everything else is passed through. Raises UserError for a test class without training images.
    """
    outer = _around(names)
    inside = Counter(_top(name, outer) for name in names)
    train, test = _first(inside, TRAIN_PARTS), _first(inside, TEST_PARTS)
    if train is None or test is None:
        return Layout(read_part(names, ""))
    training = read_part(names, f"{outer}{train}/")
    testing = read_part(names, f"{outer}{test}/", training.classes)
    unused = {printable(top): count for top, count in inside.items() if top not in (train, test)}
    return Layout(training, testing, unused)


def read_part(names: Sequence[str], folder: str, classes: tuple[str, ...] = ()) -> Part:
    """Return the images below `folder`; with `classes`, those of the training part, they are numbered by these.

    Sub-folders are classes if there are at least two of them, or if they are known. Raises UserError for an unknown
    one beside known ones.
    """
    inside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    around = "" if classes and _tops(inside, "") <= set(classes) else _around(inside)
    tops = _tops(inside, around)
    strays = sum("/" not in name[len(around) :] for name in inside)
    if problem := _no_classes(tops, strays, len(inside), known=bool(classes)):
        return Part(folder, inside, unlabelled=problem)
    if classes and (unknown := tops - set(classes)):
        raise UserError(f"{folder}{min(unknown)}: class {min(unknown)!r} has no training images; remove it or add some")
    classes = classes or tuple(sorted(tops))
    return Part(folder, inside, classes, _numbered(inside, around, classes))


def _no_classes(tops: set[str], strays: int, images: int, known: bool) -> str:
    """Return the reason why sub-folders are no classes; "" if they are."""
    if not tops:
        return "no class folders"
    if len(tops) == 1 and not known:
        return f"only one class folder, {min(tops)}/"
    if strays > STRAY * images:
        return f"{strays:,} of {images:,} images lie beside the class folders"
    return ""


def _numbered(names: list[str], around: str, classes: tuple[str, ...]) -> NDArray[np.int64]:
    tops = [_top(name, around) for name in names]
    by_class = {name: number for number, name in enumerate(classes)}
    numbers = {top: by_class[printable(top)] if top else -1 for top in set(tops)}
    return np.array([numbers[top] for top in tops], np.int64)


def _around(names: Sequence[str]) -> str:
    """Return the folders around all images that hold no image and no other folder, with a slash at the end."""
    if not names:
        return ""
    common = PurePosixPath(names[0]).parts[:-1]
    for name in names:
        parts = name.split("/")[:-1]
        while common and tuple(parts[: len(common)]) != common:
            common = common[:-1]
        if not common:
            return ""
    return "".join(f"{part}/" for part in common)


def _top(name: str, folder: str) -> str:
    """Return the first folder of a name below `folder`; "" for a file in it."""
    end = name.find("/", len(folder))
    return name[len(folder) : end] if end >= 0 else ""


def _tops(names: Sequence[str], folder: str) -> set[str]:
    return {printable(top) for top in {_top(name, folder) for name in names} if top}


def _first(tops: Counter[str], wanted: Sequence[str]) -> str | None:
    """Return the folder whose name comes first among those wanted, ignoring case."""
    by_name = {top.lower(): top for top in sorted(tops, reverse=True)}
    return next((by_name[name] for name in wanted if name in by_name), None)
