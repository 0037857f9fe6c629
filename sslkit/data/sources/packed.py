"""A .beton file as a data set."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslkit.data.images import RAW_UP_TO, Images, Role, files_fingerprint
from sslkit.data.packing.beton import Beton
from sslkit.data.packing.store import Store
from sslkit.data.sources.base import Source
from sslkit.errors import UserError


class Packed(Source):
    """An existing .beton file, written by `sslkit pack` or by FFCV's own writer.

    Squares of one size are used directly. Other files are packed again into the cache, at the requested
    size.
    """

    class Config(Source.Config):
        def check(self) -> Iterable[str]:
            if self.root is None:
                yield "names no file; give one, as in data=photos.beton"
            elif not self.root.is_file():
                yield f"{self.root} is not a file; give the path of a .beton file"
            else:
                try:
                    Beton(self.root)
                except UserError as error:
                    yield str(error)

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() == ".beton"

    def count(self) -> int:
        return len(self._file)

    def images(self, role: Role) -> "BetonImages | None":
        return BetonImages(self._file, self.config.cache) if role == "pretrain" else None

    def packed(self, role: Role, size: int) -> Store | None:
        if role != "pretrain" or self._side is None or self.config.store_size not in (None, self._side):
            return None
        return Store(self.config.root)

    def natural_size(self) -> int:
        """Return the packed size up to 96 px; above it seven eighths, the inverse of `store_size`."""
        if self._side is None:
            return super().natural_size()
        return self._side if self._side <= RAW_UP_TO else round(self._side * 7 / 8)

    @cached_property
    def _file(self) -> Beton:
        if self.config.root is None:
            raise UserError("data=beton names no file; give one, as in data=photos.beton")
        return Beton(self.config.root)

    @cached_property
    def _side(self) -> int | None:
        """Height and width of every image, None if they differ."""
        shape = self._file.shape
        return shape[0] if shape and shape[0] == shape[1] else None


class BetonImages(Images):
    """The images of a .beton file, of any sizes."""

    def __init__(self, file: Beton, cache: Path | None = None) -> None:
        self.file, self._cache = file, cache
        if file.labels is not None and (file.labels >= 0).any():
            self.labels = file.labels
            self.classes = tuple(map(str, range(int(file.labels.max()) + 1)))

    def __len__(self) -> int:
        return len(self.file)

    def name(self, index: int) -> str:
        return f"{self.file.path.name}[{index}]"

    def load(self, index: int) -> NDArray[np.uint8]:
        return self.file.image(index)

    @cached_property
    def digests(self) -> NDArray[np.uint8]:
        return self.file.digests(range(len(self)))

    def fingerprint(self) -> str:
        return files_fingerprint(self.file.path.parent, [self.file.path.name], self._cache)
