"""Lists of images that are not decoded yet."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit.data.digests import array_digests, digest_of, file_digests
from sslkit.machine.progress import progress_bar, terminal_stderr

Role = Literal["pretrain", "train", "test"]
Mode = Literal["auto", "raw", "jpeg"]
Triple = tuple[float, float, float]
RAW_UP_TO = 96
"""Largest side in pixels of images stored raw, at the size of a view; larger ones are JPEG, 8/7 of the view's size."""


class Images:
    """A list of images not decoded yet; every source returns a subclass."""

    labels: NDArray[np.int64] | None = None
    """Class numbers, int64 [N], -1 if unknown; None: unlabelled."""
    classes: tuple[str, ...] = ()
    """Class names by number; () if unlabelled."""
    unlabelled: str = ""
    """Reason why there are no labels, where it is known."""
    skipped: Sequence[tuple[str, str]] = ()
    """(name, reason) of what looked like images, but is not in the list."""

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} defines no __len__")

    def name(self, index: int) -> str:
        """Return the image's name for messages: its file, or a file and a position in it."""
        return f"image {index}"

    def load(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Return the image, as Pillow image or as uint8 [H, W, 3]. Raises if it is unreadable.

        Called from threads, and from other processes if `part` allows it.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no load")

    def part(self, indices: range) -> "Images | None":
        """Return these images alone, fit to pickle for another process; None: no other process may load them."""
        return None

    def fingerprint(self) -> str:
        """Identify the images by their content, or by the parameters of a built-in set, as one string."""
        raise NotImplementedError(f"{type(self).__name__} defines no fingerprint")

    @property
    def digests(self) -> NDArray[np.uint8] | None:
        """A digest of each image's content, uint8 [N, 16], equal for equal images; None: those of the packed pixels."""
        return None


class ArrayImages(Images):
    """Images held in one array, which is read on first use, so that a packed set costs nothing."""

    def __init__(
        self,
        read: Callable[[], tuple[NDArray[np.uint8], NDArray[np.int64] | None]],
        fingerprint: str | Callable[[], str],
        classes: tuple[str, ...] = (),
        name: Callable[[int], str] = "image {}".format,
    ) -> None:
        """Take `read()`, which returns uint8 [N, H, W, 3] and int64 [N] labels or None.

        fingerprint: the string, or a function that computes it on first use.
        """
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
        if callable(self._fingerprint):
            self._fingerprint = self._fingerprint()
        return self._fingerprint

    @cached_property
    def digests(self) -> NDArray[np.uint8]:
        return array_digests(self._content[0])

    @property
    def labels(self) -> NDArray[np.int64] | None:  # type: ignore[override]
        return self._content[1]

    @cached_property
    def _content(self) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        return self._read()


def files_fingerprint(root: Path, names: Sequence[str], cache: Path | None = None) -> str:
    """Identify files by their names below `root` and their content. cache: as the setting `data.cache`."""
    return digest_of("\0".join(names).encode("utf-8", "surrogateescape"), file_digests(root, names, cache))


@contextmanager
def content_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that shows how far the reading of images' content is."""
    with progress_bar(terminal_stderr()) as update:
        yield lambda done, total: update(done, total, f"reading {title} once: {done:,} of {total:,} files")
