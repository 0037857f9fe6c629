"""Conversion of any image that Pillow opens to a square of RGB bytes."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Fit = Literal["crop", "pad", "stretch"]
RANGES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))
"""Largest values of the depths in which grey is taken."""


def to_square(picture: Image.Image | NDArray[np.uint8], size: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """Convert an image to uint8 [size, size, 3]: upright, RGB, resampled once.

    fit: crop keeps the central square, pad adds black borders, stretch ignores the aspect ratio.
    Transparent images are composited on white. Raises whatever Pillow raises on a damaged image, ValueError for pixels
    without an agreed range.
    """
    if isinstance(picture, np.ndarray):
        if picture.shape == (size, size, 3) and picture.dtype == np.uint8:
            return picture
        picture = Image.fromarray(picture)
    draft(picture, size)
    # In place, because each copy of a large picture takes half a gigabyte.
    ImageOps.exif_transpose(picture, in_place=True)
    picture = to_rgb(picture)
    if picture.size != (size, size):
        picture = _resize(picture, size, fit)
    return np.asarray(picture)


def draft(picture: Image.Image, size: int) -> None:
    """Let a JPEG decode at 1/2, 1/4 or 1/8 size in a fraction of the time; twice the target size is enough."""
    picture.draft(None, (2 * size, 2 * size))


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert an image to three bytes per pixel."""
    if picture.mode.startswith("I"):
        return _from_wide_grey(np.asarray(picture))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert the picture to 8 bits")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _from_wide_grey(grey: NDArray[Any]) -> Image.Image:
    """Scale grey of up to 16 bits to 8 bits, where Pillow would clip it to white.

    Cameras and scanners store 10, 12 or 14 bits in 16: the range is the smallest of these that holds the brightest
    pixel, without which such pictures would be nearly black.
    """
    if grey.min() < 0 or grey.max() > 65_535:
        raise ValueError("32-bit pixels have no agreed range; convert the picture to 8 bits")
    top = next(range_ for range_ in RANGES if grey.max() <= range_)
    # In place and in unsigned 32 bits, which 65,535 × 255 fits.
    scaled = grey.astype(np.uint32) * np.uint32(255)
    scaled //= np.uint32(top)
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _resize(picture: Image.Image, size: int, fit: Fit) -> Image.Image:
    width, height = picture.size
    # LANCZOS rings when enlarging.
    method = Image.Resampling.LANCZOS if min(width, height) > size else Image.Resampling.BICUBIC
    if fit == "pad":
        return ImageOps.pad(picture, (size, size), method)
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return picture.resize((size, size), method, box=box, reducing_gap=3.0)
