"""What a data set is: a `Source` with settings, which hands out lists of images that are not decoded yet."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator

from sslkit.config import Config
from sslkit.errors import UserError

if TYPE_CHECKING:
    from sslkit.data.store import Store

Role = Literal["pretrain", "train", "test"]
Mode = Literal["auto", "raw", "jpeg"]
Triple = tuple[float, float, float]

RAW_UP_TO = 96
"""Side in pixels up to which images are stored raw, at the size of a view; above: JPEG, a seventh larger."""
MEASURED = 64
"""Images looked at to choose an image size."""


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
        return self._content[0][index]

    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def labels(self) -> NDArray[np.int64] | None:  # type: ignore[override]
        return self._content[1]

    @cached_property
    def _content(self) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        return self._read()


class Source:
    """Base of every data set: settings in, lists of images out."""

    class Config(Config):
        """What `data.<field>=` accepts."""

        root: Path | None = None
        """Where the files are; `data=PATH` sets it."""
        image_size: int | None = Field(None, ge=8, le=2048)
        """Height and width of a view, in pixels; null: what suits the data (folders: measured, 32 to 224)."""
        store_size: int | None = Field(None, ge=8, le=4096)
        """Height and width of a packed image; null: image_size up to 96 px, above it image_size × 8/7."""
        fit: Literal["crop", "pad", "stretch"] = "crop"
        """How a picture becomes square: crop keeps the middle, pad adds black, stretch distorts."""
        mode: Mode = "auto"
        """raw bytes or jpeg; auto: raw up to 96 px."""
        jpeg_quality: int = Field(92, ge=1, le=100)
        """Quality of packed JPEGs (their chroma is stored at half resolution, 4:2:0)."""
        max_skipped: float = Field(0.05, ge=0, le=1)
        """Largest share of unreadable images; more stop the run."""
        cache: Path | None = None
        """Folder of packed files; null: $SSLKIT_CACHE, or ~/.cache/sslkit."""
        mean: Triple = (0.485, 0.456, 0.406)
        """Mean of red, green and blue, 0 to 1, subtracted from the views; default: ImageNet's."""
        std: Triple = (0.229, 0.224, 0.225)
        """Standard deviation of red, green and blue, by which the views are divided; default: ImageNet's."""

        @field_validator("root", "cache")
        @classmethod
        def _absolute(cls, path: Path | None) -> Path | None:
            """A run is resumed from any folder, so what its config.yaml keeps must not depend on one."""
            return path and path.expanduser().absolute()

        @field_validator("std")
        @classmethod
        def _positive(cls, std: Triple) -> Triple:
            if min(std) <= 0:
                raise ValueError("must be three numbers above 0")
            return std

        def check(self) -> Iterable[str]:
            if self.root is not None and not self.root.exists():
                yield f"{self.root} does not exist; give the path of the images, as in data=photos/"

    defaults: ClassVar[dict[str, Any]] = {}
    """Run settings that suit the data, as dotted keys: {"augment.name": "small"}."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def advice(cls, method: str) -> dict[str, Any]:
        """Run settings that suit the data with this method, as dotted keys; `defaults`, whatever the method."""
        return cls.defaults

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Does this class read what stands at `path`? Decides what `data=PATH` means."""
        return False

    def count(self) -> int | None:
        """Number of pre-training images; None where only a download or a decompression would tell."""
        images = self.images("pretrain")
        return None if images is None else len(images)

    def images(self, role: Role) -> Images | None:
        """The images of a role, or None where the data has none; train and test are labelled."""
        raise NotImplementedError(f"{type(self).__name__} defines no images")

    def packed(self, role: Role, size: int) -> "Store | None":
        """Those images where they are already packed at `size` pixels; else None."""
        return None

    def image_size(self) -> int:
        """Height and width of a view, in pixels: the setting, or what suits the data."""
        return self.config.image_size or self.natural_size()

    def natural_size(self) -> int:
        """Median shorter side of up to 64 images, rounded down to a multiple of 32, within 32 and 224."""
        images = self.images("pretrain")
        sides = [] if images is None else [s for s in map(images_side(images), _spread(len(images))) if s]
        if not sides:
            raise UserError(f"no image of {self.config.root or type(self).__name__} can be opened")
        return int(np.clip(int(np.median(sides)) // 32 * 32, 32, 224))

    def store_size(self, image_size: int) -> int:
        """Height and width of a packed image, in pixels."""
        margin = image_size if image_size <= RAW_UP_TO else round(image_size * 8 / 7)
        return self.config.store_size or margin


def images_side(images: Images) -> Callable[[int], int | None]:
    """index -> shorter side in pixels (a file's header is enough for it), None for an unreadable image."""

    def side(index: int) -> int | None:
        try:
            picture = images.load(index)
        except Exception:
            return None
        if isinstance(picture, np.ndarray):
            return min(picture.shape[:2])
        with picture:
            return min(picture.size)

    return side


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, MEASURED)).round().astype(int)).tolist()


def cache_dir(configured: Path | None = None) -> Path:
    """Folder of packed files: as configured, else $SSLKIT_CACHE, else ~/.cache/sslkit."""
    return configured or Path(os.environ.get("SSLKIT_CACHE") or "~/.cache/sslkit").expanduser()


def digest(*parts: Any) -> str:
    """A short name for JSON-able content: equal exactly when the content is."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()


def files_fingerprint(files: Iterable[Path], root: Path) -> str:
    """Names below `root`, sizes and times of files."""
    state = hashlib.blake2b(digest_size=16)
    for file in files:
        stat = file.stat()
        state.update(f"{file.relative_to(root).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return state.hexdigest()
