"""An opened .beton file: square uint8 images of one size, all of them or a subset."""

import json
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sslkit.data.packing.beton import Beton
from sslkit.errors import UserError


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
        # Names take a hundred bytes per image, and hardly any run needs them.
        self.about = {k: v for k, v in _read_sidecar(self.beton).items() if k != "names"}
        """Metadata beside the file, except for the names; {} if there are none."""
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
        about = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); {remedy}") from error
    if not isinstance(about, dict):
        raise UserError(f"{file} is damaged (not a JSON object); {remedy}")
    # Otherwise a file copied over another would take over its classes, or lose its labels if the other had none.
    if about.get("mark", beton.mark) != beton.mark or len(about.get("names", beton)) != len(beton):
        raise UserError(f"{file} describes other images than those of {path.name}; {remedy}")
    return about
