"""Lists of images that are not decoded yet."""

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    pass


Role = Literal["pretrain", "train", "test"]


Mode = Literal["auto", "raw", "jpeg"]


Triple = tuple[float, float, float]


RAW_UP_TO = 96
"""Side in pixels up to which images are stored raw, at the size of a view; above: JPEG, a seventh larger."""


class Images:
    """A list of images not decoded yet: the base that every source fills in."""

    labels: NDArray[np.int64] | None = None
    """Class numbers, int64 [N], -1 where unknown; None: unlabelled."""
    classes: tuple[str, ...] = ()
    """Class names by number; () where unlabelled."""

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} defines no __len__")

    def name(self, index: int) -> str:
        """What messages call the image: its file, or a file and a place in it."""
        return f"image {index}"

    def load(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """The picture, or its pixels as uint8 [H, W, 3]. Raises on an unreadable one.

        Called by threads, and where `part` allows it by processes.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no load")

    def part(self, indices: range) -> "Images | None":
        """Those images alone, small enough to be pickled for another process; None: not to be loaded by another."""
        return None

    def fingerprint(self) -> str:
        """Changes when the images do: names, sizes and times of files, or parameters of a built-in set."""
        raise NotImplementedError(f"{type(self).__name__} defines no fingerprint")


class ArrayImages(Images):
    """Images that come as one array, read when first needed, so that a packed set costs nothing."""

    def __init__(
        self,
        read: Callable[[], tuple[NDArray[np.uint8], NDArray[np.int64] | None]],
        fingerprint: str,
        classes: tuple[str, ...] = (),
        name: Callable[[int], str] = "image {}".format,
    ) -> None:
        """`read()` gives uint8 [N, H, W, 3] and int64 [N] labels or None."""
        self._read = read
        self._fingerprint = fingerprint
        self.classes = classes
        self._name = name

    def __len__(self) -> int:
        return len(self._content[0])

    def name(self, index: int) -> str:
        return self._name(index)

    def load(self, index: int) -> NDArray[np.uint8]:
        result: NDArray[np.uint8] = self._content[0][index]
        return result

    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def labels(self) -> NDArray[np.int64] | None:  # type: ignore[override]
        return self._content[1]

    @cached_property
    def _content(self) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        return self._read()


def files_fingerprint(files: Iterable[Path], root: Path) -> str:
    """Names below `root`, sizes and times of files."""
    state = hashlib.blake2b(digest_size=16)
    for file in files:
        stat = file.stat()
        state.update(f"{file.relative_to(root).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return state.hexdigest()
