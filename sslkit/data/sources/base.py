"""The contract of a data set: a `Source` with settings, which returns lists of images that are not decoded yet."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from sslkit.config.base import Config
from sslkit.data.images import RAW_UP_TO, Images, Mode, Role, Triple
from sslkit.data.pictures import MAX_PIXELS, any_size
from sslkit.errors import UserError
from sslkit.machine.paths import at_home

if TYPE_CHECKING:
    from sslkit.data.packing.store import Store


MEASURED = 64
"""Number of images sampled to choose an image size."""


class Source:
    """Base of every data set: settings in, lists of images out."""

    class Config(Config):
        """Settings of a data set, given as `data.<field>=`."""

        root: Path | None = None
        """Path of the files; `data=PATH` sets it."""
        image_size: int | None = Field(None, ge=8, le=2048)
        """Height and width of a view, in pixels; null: chosen from the data (folders: measured, 32 to 224)."""
        store_size: int | None = Field(None, ge=8, le=4096)
        """Height and width of a packed image; null: image_size up to 96 px, above it image_size × 8/7."""
        fit: Literal["crop", "pad", "stretch"] = "crop"
        """Conversion to a square: crop keeps the centre, pad adds black, stretch distorts."""
        mode: Mode = "auto"
        """raw bytes or jpeg; auto: raw up to 96 px."""
        jpeg_quality: int = Field(92, ge=1, le=100)
        """Quality of packed JPEGs (chroma is stored at half resolution, 4:2:0)."""
        max_skipped: float = Field(0.05, ge=0, le=1)
        """Largest share of unreadable images; more of them stop the run."""
        max_pixels: int = Field(MAX_PIXELS, ge=1)
        """Most pixels of an image that is read; larger ones are skipped, as they might be made to fill memory."""
        cache: Path | None = None
        """Folder of packed files; null: $SSLKIT_CACHE, or ~/.cache/sslkit."""
        mean: Triple = (0.485, 0.456, 0.406)
        """Mean of red, green and blue, 0 to 1, subtracted from the views; default: ImageNet's."""
        std: Triple = (0.229, 0.224, 0.225)
        """Standard deviation of red, green and blue, by which the views are divided; default: ImageNet's."""

        @field_validator("root", "cache")
        @classmethod
        def _absolute(cls, path: Path | None) -> Path | None:
            """Make the path absolute, because a run may be resumed from any folder."""
            return path and at_home(path).absolute()

        @field_validator("std")
        @classmethod
        def _positive(cls, std: Triple) -> Triple:
            if min(std) <= 0:
                raise ValueError("must be three numbers above 0")
            return std

        def check(self) -> Iterable[str]:
            if self.root is not None and not self.root.exists():
                yield f"{self.root} does not exist; give the path of the images: data=PATH"

    defaults: ClassVar[dict[str, Any]] = {}
    """Run settings that suit the data, as dotted keys: {"augment.name": "small"}."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def advice(cls, method: str) -> dict[str, Any]:
        """Run settings that suit the data with this method, as dotted keys; by default `defaults` for all methods."""
        return cls.defaults

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Return True if this class reads the data at `path`; decides the meaning of `data=PATH`."""
        return False

    def count(self) -> int | None:
        """Number of pre-training images; None if it takes a download or decompression to know."""
        images = self.images("pretrain")
        return None if images is None else len(images)

    def images(self, role: Role) -> Images | None:
        """Return the images of a role, or None if the data has none; train and test are labelled."""
        raise NotImplementedError(f"{type(self).__name__} defines no images")

    def found(self) -> list[str]:
        """Return what was found and what is left out, one sentence a line; [] if there is nothing to tell."""
        return []

    def packed(self, role: Role, size: int) -> "Store | None":
        """Return a store of the images if they are already packed at `size` pixels, else None."""
        return None

    def image_size(self) -> int:
        """Height and width of a view, in pixels: the setting, or the natural size."""
        return self.config.image_size or self.natural_size()

    def natural_size(self) -> int:
        """Median shorter side of up to 64 images, rounded down to a multiple of 32, within 32 and 224."""
        images = self.images("pretrain")
        with any_size():
            sides = [] if images is None else [s for s in map(images_side(images), _spread(len(images))) if s]
        if not sides:
            raise UserError(f"no image of {self.config.root or type(self).__name__} can be opened")
        return int(np.clip(int(np.median(sides)) // 32 * 32, 32, 224))

    def store_size(self, image_size: int) -> int:
        """Height and width of a packed image, in pixels."""
        margin = image_size if image_size <= RAW_UP_TO else round(image_size * 8 / 7)
        return self.config.store_size or margin


def images_side(images: Images) -> Callable[[int], int | None]:
    """Map an index to the shorter side in pixels (a file's header is enough), None for an unreadable image."""

    def side(index: int) -> int | None:
        try:
            picture = images.load(index)
        except Exception:
            return None
        if isinstance(picture, np.ndarray):
            result: int | None = min(picture.shape[:2])
            return result
        with picture:
            return min(picture.size)

    return side


def _spread(count: int) -> list[int]:
    result: list[int] = np.unique(np.linspace(0, count - 1, min(count, MEASURED)).round().astype(int)).tolist()
    return result
