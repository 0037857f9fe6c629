"""Your own images: a folder, with one sub-folder per class or flat."""

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from copy import copy
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from sslkit.data.images import Images, Role, files_fingerprint
from sslkit.data.sources.base import Source
from sslkit.errors import UserError

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
    ]
)
"""File extensions of images, in lower case; compared ignoring case."""
TEST_FOLDERS = ("test", "val")


class Folder(Source):
    """A folder of images: class sub-folders, or flat and unlabelled; train/ and test/ or val/ are a pair."""

    class Config(Source.Config):
        def check(self) -> Iterable[str]:
            if self.root is None:
                yield "names no folder; give one, as in data=photos/"
            elif not self.root.exists():
                yield f"{self.root} does not exist; give the path of a folder of images"
            elif not self.root.is_dir():
                yield f"{self.root} is a file; give the folder that holds the images"
            elif next(find_images(self.root), None) is None:
                yield _nothing_in(self.root)

    @classmethod
    def claims(cls, path: Path) -> bool:
        return path.is_dir()

    def images(self, role: Role) -> "FileImages | None":
        if self.config.root is None:
            raise UserError("data=folder names no folder; give one, as in data=photos/")
        if role == "test":
            return self._test
        # Without test images a classifier trained on the training images could not be measured.
        return self._train if role == "pretrain" or self._test is not None else None

    @cached_property
    def _train(self) -> "FileImages":
        return FileImages(self.config.root / "train" if self._test_root else self.config.root)

    @cached_property
    def _test(self) -> "FileImages | None":
        return FileImages(self._test_root, self._train.classes) if self._test_root else None

    @cached_property
    def _test_root(self) -> Path | None:
        root: Path = self.config.root
        folders = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
        return folders[0] if folders and (root / "train").is_dir() else None


class FileImages(Images):
    """Image files below a folder. Sub-folders are classes if there are at least two, with no image beside them."""

    def __init__(self, root: Path, classes: tuple[str, ...] = ()) -> None:
        """List the images below `root`; for a test folder, `classes` are those of the training images."""
        self.root = root
        # Names instead of paths take a tenth of the memory for a million files. Sorted like paths, by component.
        names = (file.relative_to(root).as_posix() for file in find_images(root))
        self._names = sorted(names, key=lambda name: name.replace("/", "\0"))
        if not self._names:
            raise UserError(_nothing_in(root))
        tops = sorted({name.partition("/")[0] for name in self._names})
        if len(tops) > 1 and all("/" in name for name in self._names):
            self.classes = classes or tuple(tops)
            if unknown := set(tops) - set(self.classes):
                raise UserError(f"{root}: class {min(unknown)!r} has no training images; remove it or add some")
            numbers = {name: k for k, name in enumerate(self.classes)}
            self.labels = np.array([numbers[name.partition("/")[0]] for name in self._names], np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def load(self, index: int) -> Image.Image:
        # From memory, because Pillow leaves the files of some formats open.
        return Image.open(io.BytesIO((self.root / self._names[index]).read_bytes()))

    def part(self, indices: range) -> "FileImages | None":
        # Another process may not find a subclass that is defined in a script.
        if type(self) is not FileImages:
            return None
        chosen = copy(self)
        chosen._names = [self._names[k] for k in indices]
        chosen.labels = None if self.labels is None else self.labels[indices.start : indices.stop]
        return chosen

    def fingerprint(self) -> str:
        return files_fingerprint((self.root / name for name in self._names), self.root)


def find_images(root: Path) -> Iterator[Path]:
    """Yield image files at any depth below `root` except hidden ones; links to folders are followed, once each."""
    return (path for path in _visible_files(root) if path.suffix.lower() in EXTENSIONS)


def _visible_files(root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _nothing_in(root: Path) -> str:
    kinds = Counter(path.suffix.lower() or "no extension" for path in islice(_visible_files(root), 10_000))
    if not kinds:
        return f"{root} is empty; give a folder of images"
    endings = ", ".join(f"{n} × {kind}" for kind, n in kinds.most_common(3))
    return f"{root} holds no images, but {endings}; images end in {', '.join(sorted(EXTENSIONS))}"
