"""An opened .beton file: square uint8 images of one size, all of them or a subset."""

import json
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import StringConstraints, TypeAdapter, ValidationError

# pydantic reads the one of `typing` only from Python 3.12 on.
from typing_extensions import TypedDict

from sslkit.data.digests import BYTES, file_digest
from sslkit.data.packing.beton import Beton
from sslkit.errors import UserError


class About(TypedDict, total=False):
    """Metadata beside a packed file."""

    classes: list[str]
    settings: dict[str, Any]
    skipped: list[tuple[str, str]]
    mark: str
    """Of the packed images; see `Beton.mark`."""
    content: str
    """Digest of the packed file's bytes."""
    digest: str
    """Of all images before packing, and their labels."""
    digests: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{32})*$")]
    """Of each image before packing, one after the other."""
    names: list[str]


_ABOUT = TypeAdapter(About)


class Store:
    """Images of one .beton file, selected rows in a given order; nothing is decoded before it is read.

    The metadata that `sslkit pack` keeps beyond the pixels (names, classes, skipped images) is in `<file>.json`
    beside it; a file written by FFCV itself has none and opens all the same. Raises UserError for a damaged file,
    for images that are not squares of one size, and for metadata that belong to other images.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.beton = Beton(path)
        self.rows = np.arange(len(self.beton))
        """Row numbers in the file."""
        self.size = self._side()
        """Height and width in pixels."""
        about = _read_sidecar(self.beton)
        self._digests = _as_digests(about.get("digests"))
        self._content: str | None = None
        # Names take a hundred bytes per image, and hardly any run needs them.
        self.about = {k: v for k, v in about.items() if k not in ("names", "digests")}
        """Metadata beside the file, except for names and digests; {} if there are none."""
        self.labels = self._labels()
        """Class numbers, int64 [N], -1 if unknown; None: unlabelled."""
        self.classes: tuple[str, ...] = self._classes()
        """Class names by number; () if unlabelled."""
        self.skipped: list[tuple[str, str]] = [(n, r) for n, r in self.about.get("skipped", [])]
        """(name, reason) of the images that could not be packed."""

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} images of {self.size} px, {len(self.classes)} classes)"

    def subset(self, rows: ArrayLike) -> "Store":
        """Return a store of only these images, in this order; its row numbers start at 0 again."""
        rows = np.asarray(rows, np.int64)
        part = copy(self)
        part.__dict__.pop("names", None)
        part.rows = self.rows[rows]
        part.labels = None if self.labels is None else self.labels[rows]
        return part

    def read(self, rows: ArrayLike) -> NDArray[np.uint8]:
        """Decode images, uint8 [n, size, size, 3], without FFCV; memory is that of the result."""
        return self.beton.read(self.rows[np.asarray(rows, np.int64)])

    @cached_property
    def names(self) -> list[str]:
        """Image names, [] if unknown; read on first use, with the same errors as opening the store."""
        names = _read_sidecar(self.beton).get("names")
        return [names[row] for row in self.rows] if names else []

    @property
    def digests(self) -> NDArray[np.uint8]:
        """A digest of each image's content, uint8 [N, 16], equal for equal images.

        It is that of the image before packing where it is known, otherwise that of the stored bytes.
        """
        return self.beton.digests(self.rows.tolist()) if self._digests is None else self._digests[self.rows]

    @property
    def digest(self) -> str:
        """Identify the images of the file in their order, and their labels, wherever they lie and however packed.

        For a file that does not tell this, it is the digest of its bytes.
        """
        known: str | None = self.about.get("digest")
        return known or self._content or file_digest(self.path)

    @property
    def stored(self) -> str:
        """How the images are stored, in words."""
        known = self.about.get("settings", {})
        keys = ("mode", "fit") if known.get("mode") == "raw" else ("mode", "jpeg_quality", "fit")
        return ", ".join([f"stored at {self.size} px", *(f"{key} {known[key]}" for key in keys if key in known)])

    def check(self, cache: Path | None = None) -> None:
        """Compare all bytes with those that were packed; an unchanged file is read only once for that.

        cache: as the setting `data.cache`. Raises UserError if they differ. Files that tell no digest pass.
        """
        self._content = file_digest(self.path, cache)
        if self.about.get("content", self._content) != self._content:
            raise UserError(f"{self.path} is damaged: its bytes have changed since it was packed; pack it again")

    def _side(self) -> int:
        shape = self.beton.shape
        if shape is None or shape[0] != shape[1]:
            raise UserError(f"the images of {self.path} are not squares of one size; data={self.path} packs them again")
        return shape[0]

    def _labels(self) -> NDArray[np.int64] | None:
        if self.beton.labels is None or self.about.get("classes") == []:
            return None
        return self.beton.labels if (self.beton.labels >= 0).any() else None

    def _classes(self) -> tuple[str, ...]:
        if self.labels is None:
            return ()
        count = int(self.labels.max()) + 1
        named = tuple(self.about.get("classes", ()))
        return named if len(named) >= count else tuple(map(str, range(count)))


def sidecar(path: Path) -> Path:
    """Path of a packed file's names, classes and settings: photos.beton.json for photos.beton."""
    return path.with_name(path.name + ".json")


def _read_sidecar(beton: Beton) -> dict[str, Any]:
    """Read the metadata beside the file, {} if there are none. Raises UserError if damaged or of other images."""
    path = beton.path
    file, remedy = sidecar(path), f"delete it, or pack {path.name} again"
    try:
        # Not by pydantic, whose cache of strings would keep the names.
        about = dict(_ABOUT.validate_python(json.loads(file.read_bytes())))
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file} is damaged ({where}{': ' * bool(where)}{first['msg']}); {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}); {remedy}") from error
    # Otherwise a file copied over another would take over its classes, or lose its labels if the other had none.
    if about.get("mark", beton.mark) != beton.mark or not _fits(about, len(beton)):
        raise UserError(f"{file} describes other images than those of {path.name}; {remedy}")
    return about


def _as_digests(text: str | None) -> NDArray[np.uint8] | None:
    return None if text is None else np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, BYTES)


def _fits(about: dict[str, Any], images: int) -> bool:
    """Return True if names and digests are those of so many images."""
    counts = [len(about.get("names", range(images))), len(about.get("digests", "")) // (2 * BYTES) or images]
    return counts == [images, images]
