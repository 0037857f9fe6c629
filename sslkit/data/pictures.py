"""Open picture files of every kind that is read, with limits on what one of them may hold."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from PIL import Image

HEIF = (".heic", ".heif", ".hif")
EXTENSIONS = frozenset(HEIF).union(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif"],
    [".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"],
)
"""File extensions of images, in lower case; compared ignoring case."""
MAX_PIXELS = 178_956_970
"""Pixels above which Pillow refuses an image as a possible bomb."""


def open_picture(path: Path) -> Image.Image:
    """Open a picture, not decoded yet. Raises what Pillow raises, and OSError for .heic without its library."""
    if path.suffix.lower() in HEIF:
        _read_heif()
    # From memory, because Pillow leaves the files of some formats open.
    return Image.open(io.BytesIO(path.read_bytes()))


def can_read_heif() -> bool:
    """Return True if .heic and .heif can be read."""
    try:
        _read_heif()
    except OSError:
        return False
    return True


def check_pixels(size: tuple[int, int], most: int = MAX_PIXELS) -> None:
    """Raise ValueError for an image of more than `most` pixels."""
    pixels = size[0] * size[1]
    if pixels > most:
        raise ValueError(f"{pixels:,} pixels are more than data.max_pixels={most} allows; raise it to read such images")


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open images of any size inside the block, where `check_pixels` decides; then as before."""
    global _open_blocks, _limit_before
    with _lock:
        if not _open_blocks:
            _limit_before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _open_blocks += 1
    try:
        yield
    finally:
        with _lock:
            _open_blocks -= 1
            if not _open_blocks:
                Image.MAX_IMAGE_PIXELS = _limit_before


_lock = Lock()
_open_blocks = 0
_limit_before: int | None = None


def printable(name: str) -> str:
    """Return a file name as text for messages: bytes that are not UTF-8, and control characters, as escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _read_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise OSError('.heic needs pillow-heif: pip install "sslkit[heic]"') from error
    register_heif_opener()
