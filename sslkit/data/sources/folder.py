"""Your own images: a folder, with one sub-folder per class or flat."""

from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit.data.digests import digest_of, file_digests
from sslkit.data.images import Images, Role, content_progress
from sslkit.data.pictures import EXTENSIONS, HEIF, can_read_heif, open_picture, printable
from sslkit.data.sources.base import Source
from sslkit.data.sources.layout import Layout, Part, read_part
from sslkit.data.sources.listing import Listing, list_images
from sslkit.errors import UserError

NAMED = 6
"""Number of classes that are named with their counts."""


class Folder(Source):
    """A folder of images: class sub-folders, or flat and unlabelled; train/ and test/ or val/ are a pair."""

    class Config(Source.Config):
        def check(self) -> Iterable[str]:
            if self.root is None:
                yield "names no folder; give one, as in data=photos/"
            elif not self.root.exists():
                yield missing(self.root)
            elif not self.root.is_dir():
                yield f"{self.root} is a file; give the folder that holds the images"
            elif not (listing := list_images(self.root)).names:
                yield _nothing_in(listing)

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.is_dir()

    def images(self, role: Role) -> "FileImages | None":
        if role == "test":
            return self._test
        # Without test images a classifier trained on the training images could not be measured.
        return self._train if role == "pretrain" or self._test is not None else None

    def found(self) -> list[str]:
        listing, layout = self._listing, self._layout
        parts = [self._train.in_words()] + ([self._test.in_words()] if self._test else [])
        unused = [
            f"{count:,} images in {name or 'no'}{'/' * bool(name)} are in neither part"
            for name, count in layout.unused.items()
        ]
        left_out = "; ".join([listing.left_out] * bool(listing.left_out) + unused)
        return [f"found in {printable(str(listing.root))}: {'; '.join(parts)}"] + [f"left out: {left_out}"] * bool(
            left_out
        )

    @cached_property
    def _listing(self) -> Listing:
        if self.config.root is None:
            raise UserError("data=folder names no folder; give one, as in data=photos/")
        return list_images(self.config.root)

    @property
    def _layout(self) -> Layout:
        if not self._listing.names:
            raise UserError(_nothing_in(self._listing))
        return self._listing.layout

    @cached_property
    def _train(self) -> "FileImages":
        return FileImages(self.config.root, self._layout.train, self.config.cache, self._listing.skipped)

    @cached_property
    def _test(self) -> "FileImages | None":
        part = self._layout.test
        return FileImages(self.config.root, part, self.config.cache) if part else None


class FileImages(Images):
    """Image files below a folder. Sub-folders are classes if there are two, with hardly an image beside them."""

    def __init__(
        self,
        root: Path,
        part: Part | None = None,
        cache: Path | None = None,
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        """
        part: the images and their classes; None: all images below `root`. cache: as the setting `data.cache`.
        skipped: (name, reason) of files that cannot be images.
        """
        if part is None:
            listing = list_images(root)
            if not listing.names:
                raise UserError(_nothing_in(listing))
            part, skipped = read_part(listing.names, ""), listing.skipped
        self.root = root / part.folder
        self.folder = part.folder
        # Names instead of paths take a tenth of the memory for a million files.
        self._names = part.names
        self.classes, self.labels, self.unlabelled = part.classes, part.labels, part.unlabelled
        self.skipped = list(skipped)
        self._cache = cache

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return printable(self._names[index])

    def load(self, index: int) -> Image.Image:
        return open_picture(self.root / self._names[index])

    def part(self, indices: range) -> "FileImages | None":
        # Another process may not find a subclass that is defined in a script.
        if type(self) is not FileImages:
            return None
        chosen = copy(self)
        chosen.__dict__.pop("digests", None)
        chosen._names = [self._names[k] for k in indices]
        chosen.labels = None if self.labels is None else self.labels[indices.start : indices.stop]
        return chosen

    def fingerprint(self) -> str:
        # What cannot be read for want of a library is read once that is installed.
        heif = can_read_heif() if any(name.lower().endswith(HEIF) for name in self._names) else None
        names = "\0".join(self._names).encode("utf-8", "surrogateescape")
        return digest_of(names, self.digests, str(heif).encode())

    @cached_property
    def digests(self) -> NDArray[np.uint8]:
        with content_progress(printable(str(self.root))) as progress:
            return file_digests(self.root, self._names, self._cache, progress)

    def in_words(self) -> str:
        """Describe the images: their number, and their classes."""
        where = f"{self.folder} " if self.folder else ""
        if self.labels is None:
            return f"{where}{len(self):,} images, unlabelled: {self.unlabelled}"
        counts = Counter(self.labels.tolist())
        strays = f", {counts[-1]:,} of no class" if counts[-1] else ""
        sizes = [f"{name} {counts[number]:,}" for number, name in enumerate(self.classes)]
        named = ", ".join(sizes[:NAMED]) + f" and {len(sizes) - NAMED:,} more" * (len(sizes) > NAMED)
        return f"{where}{len(self):,} images in {len(self.classes):,} classes ({named}){strays}"


def missing(root: Path) -> str:
    """Return the sentence about a folder that is not there."""
    return f"{printable(str(root))} does not exist; give the path of the images: data=PATH"


def _nothing_in(listing: Listing) -> str:
    root = printable(str(listing.root))
    if not listing.root.exists():
        return missing(listing.root)
    if not listing.left_out:
        return f"{root} is empty; give a folder of images"
    return f"{root} holds no images, but {listing.left_out}; images end in {', '.join(sorted(EXTENSIONS))}"
