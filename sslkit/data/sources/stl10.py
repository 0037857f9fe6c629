"""STL-10: 96×96 photographs, 100,000 of them unlabelled, from its own binary files."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslkit.data.images import ArrayImages, Role, files_fingerprint
from sslkit.data.sources.base import Source
from sslkit.errors import UserError

SIDE = 96
IMAGE_BYTES = 3 * SIDE * SIDE
SUBFOLDER = "stl10_binary"
FILES: dict[Role, tuple[str, str | None]] = {
    "pretrain": ("unlabeled_X.bin", None),
    "train": ("train_X.bin", "train_y.bin"),
    "test": ("test_X.bin", "test_y.bin"),
}
WHERE = "download stl10_binary.tar.gz from https://cs.stanford.edu/~acoates/stl10/ and unpack it"


class STL10(Source):
    """STL-10, 96×96: pre-training on 100,000 unlabelled images, evaluation on the labelled 5,000 and 8,000.

    Coates, Lee and Ng 2011, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning". Needs
    the folder of its binary files; test images are optional.
    """

    class Config(Source.Config):
        def check(self) -> Iterable[str]:
            if self.root is None:
                yield f"names no folder; {WHERE}, then give data=stl10_binary/"
            elif not _file(self.root, "unlabeled_X.bin").is_file():
                yield f"{self.root} holds no unlabeled_X.bin; {WHERE}"

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.is_dir() and _file(path, "unlabeled_X.bin").is_file()

    def count(self) -> int:
        return _count(self._file("unlabeled_X.bin"))

    def images(self, role: Role) -> ArrayImages | None:
        pixels_name, labels_name = FILES[role]
        pixels = self._file(pixels_name)
        labels = self._file(labels_name) if labels_name else None
        if role != "pretrain" and not (pixels.is_file() and labels and labels.is_file()):
            return None
        names = [file.name for file in (pixels, labels) if file]
        classes = _class_names(pixels.parent) if labels else ()
        fingerprint = partial(files_fingerprint, pixels.parent, names, self.config.cache)
        return ArrayImages(partial(_read, pixels, labels), fingerprint, classes, f"{pixels_name}[{{}}]".format)

    def natural_size(self) -> int:
        return SIDE

    def _file(self, name: str) -> Path:
        if self.config.root is None:
            raise UserError(f"data=stl10 names no folder; {WHERE}, then give data=stl10_binary/")
        return _file(self.config.root, name)


def _file(root: Path, name: str) -> Path:
    inside = root / SUBFOLDER
    return (inside if inside.is_dir() else root) / name


def _count(pixels: Path) -> int:
    try:
        size = pixels.stat().st_size
    except OSError as error:
        raise UserError(f"{pixels} cannot be read ({error.strerror}); {WHERE}") from error
    if size == 0 or size % IMAGE_BYTES:
        raise UserError(f"{pixels} is damaged: {size} bytes is no whole number of 96×96 images; {WHERE} again")
    return size // IMAGE_BYTES


def _read(pixels: Path, labels: Path | None) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    count = _count(pixels)
    # Channel by channel, each in column-major order (according to the file's own description).
    images = np.memmap(pixels, np.uint8, "r", shape=(count, 3, SIDE, SIDE)).transpose(0, 3, 2, 1)
    if labels is None:
        return images, None
    numbers = np.fromfile(labels, np.uint8).astype(np.int64) - 1
    if len(numbers) != count or numbers.min() < 0 or numbers.max() > 9:
        raise UserError(f"{labels} is damaged: it does not hold {count} labels from 1 to 10; {WHERE} again")
    return images, numbers


def _class_names(folder: Path) -> tuple[str, ...]:
    file = folder / "class_names.txt"
    names = tuple(file.read_text(encoding="utf-8").split()) if file.is_file() else ()
    return names if len(names) == 10 else tuple(map(str, range(10)))
