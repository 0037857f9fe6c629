"""CIFAR-10 and CIFAR-100 in their binary layout (never the pickled one), from disk or downloaded once."""

import lzma
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sslkit.data.images import ArrayImages, Role, files_fingerprint
from sslkit.data.sources.base import Source
from sslkit.data.sources.download import fetch_archive
from sslkit.errors import UserError
from sslkit.machine.cache import cache_dir

SIDE = 32
SUFFIXES = ("", ".xz")
MOST_RECORDS = 60_000
"""Records that one file holds at most: more than any of CIFAR's does."""
MOST_MEMORY = 256 << 20
"""Bytes that decompression may take beside its result."""


class CIFAR10(Source):
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes, 32×32; downloaded without root.

    Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". Reads the binary files, plain or
    compressed (.bin.xz).
    """

    class Config(Source.Config):
        url: str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
        """Address of the archive, used if root is not given."""
        md5: str = "c32a1d4ab5d03f1284b67883e8d87530"
        """Checksum of the archive."""

        def check(self) -> Iterable[str]:
            return _check(CIFAR10, self.root)

    folder: ClassVar[str] = "cifar-10-batches-bin"
    train_files: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
    test_files: ClassVar[tuple[str, ...]] = ("test_batch.bin",)
    names_file: ClassVar[str] = "batches.meta.txt"
    label_bytes: ClassVar[int] = 1
    n_classes: ClassVar[int] = 10

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.is_dir() and _locate(cls._inside(path), cls.train_files[0]) is not None

    def count(self) -> int | None:
        """Number of pre-training images; None before a download, and for compressed files, whose length is unknown."""
        files = [_locate(self._home, name) for name in self.train_files]
        if any(file is None or file.suffix == ".xz" for file in files):
            return None
        return sum(file.stat().st_size for file in files if file) // self._record_bytes

    def images(self, role: Role) -> ArrayImages | None:
        names = self.test_files if role == "test" else self.train_files
        self._download_if_needed(names)
        files = [file for name in names if (file := _locate(self._home, name))]
        if role == "test" and not files:
            return None
        if len(files) < len(names):
            raise UserError(f"{self._home} does not hold all of {', '.join(names)} (or their .xz); add what is missing")
        fingerprint = partial(files_fingerprint, self._home, [file.name for file in files], self.config.cache)
        read = partial(_read, files, self.label_bytes, self.n_classes)
        return ArrayImages(read, fingerprint, self._class_names(), f"{role}[{{}}]".format)

    def natural_size(self) -> int:
        return SIDE

    @property
    def _record_bytes(self) -> int:
        return self.label_bytes + 3 * SIDE * SIDE

    @property
    def _home(self) -> Path:
        if self.config.root is None:
            return cache_dir(self.config.cache) / "downloads" / self.folder
        return self._inside(self.config.root)

    @classmethod
    def _inside(cls, root: Path) -> Path:
        inside = root / cls.folder
        return inside if inside.is_dir() else root

    def _download_if_needed(self, names: tuple[str, ...]) -> None:
        if self.config.root is None and not all(_locate(self._home, name) for name in names):
            wanted = {*self.train_files, *self.test_files, self.names_file}
            fetch_archive(self.config.url, self.config.md5, self._home, wanted)

    def _class_names(self) -> tuple[str, ...]:
        file = self._home / self.names_file
        names = tuple(file.read_text(encoding="utf-8").split()) if file.is_file() else ()
        return names if len(names) == self.n_classes else tuple(map(str, range(self.n_classes)))


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training and 10,000 test images of 100 fine classes, 32×32; downloaded without root.

    Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". Reads the binary files, plain or
    compressed (.bin.xz).
    """

    class Config(CIFAR10.Config):
        url: str = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
        """Address of the archive, used if root is not given."""
        md5: str = "03b5dce01913d631647c71ecec9e9cb8"
        """Checksum of the archive."""

        def check(self) -> Iterable[str]:
            return _check(CIFAR100, self.root)

    folder: ClassVar[str] = "cifar-100-binary"
    train_files: ClassVar[tuple[str, ...]] = ("train.bin",)
    test_files: ClassVar[tuple[str, ...]] = ("test.bin",)
    names_file: ClassVar[str] = "fine_label_names.txt"
    # The coarse label comes first, the fine one last.
    label_bytes: ClassVar[int] = 2
    n_classes: ClassVar[int] = 100


def _check(source: type[CIFAR10], root: Path | None) -> Iterable[str]:
    if root is None:
        return
    home = source._inside(root)
    missing = [name for name in source.train_files if _locate(home, name) is None]
    if missing:
        yield f"{root} lacks {', '.join(missing)} (or .xz of it); give the folder of the binary files"


def _locate(folder: Path, name: str) -> Path | None:
    return next((f for suffix in SUFFIXES if (f := folder / f"{name}{suffix}").is_file()), None)


def _read(files: list[Path], label_bytes: int, n_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    width = label_bytes + 3 * SIDE * SIDE
    records = np.concatenate([_records(file, width) for file in files])
    labels = records[:, label_bytes - 1].astype(np.int64)
    if labels.max() >= n_classes:
        raise UserError(f"{files[0].parent} is damaged: a label is {labels.max()}; get the files again")
    pixels = records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


def _records(file: Path, width: int) -> NDArray[np.uint8]:
    try:
        content = _content(file, MOST_RECORDS * width)
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"{file} cannot be read ({error}); get it again") from error
    if not content or len(content) % width:
        raise UserError(f"{file} is damaged: {len(content)} bytes is no whole number of records; get it again")
    return np.frombuffer(content, np.uint8).reshape(-1, width)


def _content(file: Path, most: int) -> bytes:
    """Return the bytes of a file, decompressed. Raises OSError if there are more than `most` of them."""
    if file.stat().st_size > most:
        raise OSError(f"it holds more than {most:,} bytes")
    packed = file.read_bytes()
    if file.suffix != ".xz":
        return packed
    content = b""
    while packed:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_MEMORY)
        content += stream.decompress(packed, most + 1 - len(content))
        if len(content) > most:
            raise OSError(f"it holds more than {most:,} bytes")
        if not stream.eof:
            raise lzma.LZMAError("it ends too early")
        # Padding between streams is made of zeros.
        packed = stream.unused_data.lstrip(b"\0")
    return content
