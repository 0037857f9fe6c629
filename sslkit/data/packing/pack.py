"""Pack images into one .beton file: decoded, squared and stored once, so that no run decodes a photograph again."""

import errno
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from sslkit.data.digests import images_digest, read_digest
from sslkit.data.images import RAW_UP_TO, Images, Mode
from sslkit.data.packing.beton import JPEG, RAW, Beton, BetonWriter, Record, encode_jpeg
from sslkit.data.packing.convert import Fit, draft, to_square
from sslkit.data.packing.large import LARGE, LargePictures
from sslkit.data.packing.processes import ordered_map_by_processes
from sslkit.data.packing.store import Store, sidecar
from sslkit.data.pictures import MAX_PIXELS, any_size, check_pixels
from sslkit.data.threads import ordered_map
from sslkit.errors import UserError, in_one_line
from sslkit.machine.atomic import replacing, write_text
from sslkit.machine.environment import core_count

APART_FROM = 20_000
"""Number of images from which processes are worth their start-up second: on small files threads wait for the GIL."""
CHUNK, CHUNK_BYTES = 32, 1 << 20
"""Images that a process takes at a time, and a bound on the bytes it returns; at least one image."""
NAMED = 5
"""Number of unreadable images named in a message; the file beside the packed one names all of them."""


def pack(
    images: Images,
    path: Path,
    *,
    size: int,
    mode: Mode = "auto",
    jpeg_quality: int = 92,
    fit: Fit = "crop",
    max_skipped: float = 0.05,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
    workers: int = -1,
) -> Store:
    """Write `images` as squares of `size` pixels to `path`, atomically, and open the result.

    The order is kept; unreadable images are skipped and listed with the reason in `Store.skipped`. The
    same images give the same bytes whatever the number of `workers` (threads, or processes for many files;
    -1: one per core). `progress(done, total)` is called repeatedly. Raises UserError if more than the
    share `max_skipped` of the images is unreadable, if there are none, or if the disk cannot be written.
    Images of more than `max_pixels` pixels count as unreadable.
    """
    mode = concrete_mode(mode, size)
    prepare = partial(_prepare, size=size, mode=mode, jpeg_quality=jpeg_quality, fit=fit, max_pixels=max_pixels)
    settings = {"size": size, "mode": mode, "jpeg_quality": jpeg_quality, "fit": fit}
    if not len(images):
        raise UserError(f"there are no images to pack into {path}")
    classes = _class_names(images)
    try:
        with replacing(path) as temporary:
            with any_size():
                rows, skipped = _write(images, temporary, prepare, size, max_skipped, progress, core_count(workers))
            about = {"classes": classes, "settings": settings, "skipped": skipped} | _identity(images, rows, temporary)
            # Written first, so that a packed file never exists without it.
            write_text(sidecar(path), json.dumps(about, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise _refused(path, error) from error
    return Store(path)


def _identity(images: Images, rows: list[int], file: Path) -> dict[str, Any]:
    """Return what tells these images, and the bytes of their packed file, from all others."""
    packed, known = Beton(file), images.digests
    digests = packed.digests(range(len(packed))) if known is None else known[rows]
    return {
        "mark": packed.mark,
        "content": read_digest(file).hex(),
        "digest": images_digest(digests, packed.labels if images.labels is not None else None),
        "digests": digests.tobytes().hex(),
        "names": [images.name(row) for row in rows],
    }


def concrete_mode(mode: Mode, size: int) -> Mode:
    """Resolve auto to raw or jpeg."""
    if mode != "auto":
        return mode
    return "raw" if size <= RAW_UP_TO else "jpeg"


def name_skipped(skipped: list[tuple[str, str]]) -> str:
    """List the first few skipped images, one per line."""
    lines = [f"  {name}: {reason}" for name, reason in skipped[:NAMED]]
    return "\n".join(lines + [f"  and {len(skipped) - NAMED} more"] * (len(skipped) > NAMED))


def _write(
    images: Images,
    path: Path,
    prepare: Callable[..., Record | str | None],
    size: int,
    max_skipped: float,
    progress: Callable[[int, int], None] | None,
    workers: int,
) -> tuple[list[int], list[tuple[str, str]]]:
    """Return (numbers of the images written, (name, reason) of those skipped)."""
    total = len(images)
    rows: list[int] = []
    skipped: list[tuple[str, str]] = []
    with open(path, "wb") as file, closing(_prepared(images, prepare, size, workers)) as prepared:
        # A JPEG of pure noise can be slightly larger than its pixels.
        writer = BetonWriter(file, total, 2 * size * size * 3)
        for index, record in enumerate(prepared):
            if isinstance(record, Record):
                writer.add(record)
                rows.append(index)
            else:
                skipped.append((images.name(index), record))
                _stop_if_too_many(skipped, index + 1, total, max_skipped)
            if progress:
                progress(index + 1, total)
        writer.finish()
    return rows, skipped


def _prepared(
    images: Images, prepare: Callable[..., Record | str | None], size: int, workers: int
) -> Generator[Record | str, None, None]:
    """Yield `prepare` of every image, in order, computed by threads or processes, with few results in flight."""
    with closing(LargePictures()) as large:
        here = partial(_prepare_here, prepare, images, large)
        if workers == 1 or len(images) < APART_FROM or images.part(range(1)) is None:
            yield from ordered_map(here, range(len(images)), workers, ahead=4 * workers)
            return
        for index, record in enumerate(_prepared_apart(images, prepare, size, workers)):
            # Only here is it known how many large images are being decoded.
            yield here(index) if record is None else record


def _prepared_apart(
    images: Images, prepare: Callable[..., Record | str | None], size: int, workers: int
) -> Iterator[Record | str | None]:
    """Yield `prepare` of every image, in order, computed by processes; None for large images."""
    total = len(images)
    chunk = max(1, min(CHUNK, CHUNK_BYTES // (3 * size * size)))
    parts = (images.part(range(start, min(start + chunk, total))) for start in range(0, total, chunk))
    prepare_part = partial(_prepare_part, prepare, ImageFile.LOAD_TRUNCATED_IMAGES)
    for records in ordered_map_by_processes(prepare_part, parts, workers, ahead=2 * workers):
        yield from records


def _prepare_here(
    prepare: Callable[..., Record | str | None], images: Images, large: LargePictures, index: int
) -> Record | str:
    record = prepare(images, index, large=large)
    assert record is not None
    return record


def _prepare_part(
    prepare: Callable[..., Record | str | None], load_truncated: bool, part: Images
) -> list[Record | str | None]:
    """In a worker process: prepare every image of the part, with the calling process's settings of Pillow."""
    ImageFile.LOAD_TRUNCATED_IMAGES = load_truncated
    with any_size():
        return [prepare(part, index) for index in range(len(part))]


def _prepare(
    images: Images,
    index: int,
    *,
    size: int,
    mode: Mode,
    jpeg_quality: int,
    fit: Fit,
    max_pixels: int,
    large: LargePictures | None = None,
) -> Record | str | None:
    """Return one image ready to be written, or the reason why it cannot be read.

    large: decodes large images; None: return None for these.
    """
    try:
        # In a list, so that nothing holds on to a large picture when the next one is decoded.
        loaded = [images.load(index)]
        count = _pixels_to_decode(loaded[0], size, max_pixels)
        if large is None and count > LARGE:
            return None
        pixels = large.decode(count, _squared, loaded, size, fit) if large else _squared(loaded, size, fit)
    except MemoryError:
        raise
    except Exception as error:
        # Decoders raise anything on damaged files: OSError, SyntaxError, struct.error, zlib.error, ...
        return _reason(error)
    label = -1 if images.labels is None else int(images.labels[index])
    if mode == "raw":
        return Record(RAW, size, size, pixels.tobytes(), label)
    return Record(JPEG, size, size, encode_jpeg(pixels, jpeg_quality), label)


def _squared(loaded: list[Image.Image | NDArray[np.uint8]], size: int, fit: Fit) -> NDArray[np.uint8]:
    return to_square(loaded.pop(), size, fit)


def _pixels_to_decode(picture: Image.Image | NDArray[np.uint8], size: int, most: int) -> int:
    """Return the number of pixels that decoding gives. Raises ValueError if the image has more than `most`."""
    if isinstance(picture, np.ndarray):
        return 0
    check_pixels(picture.size, most)
    draft(picture, size)
    return picture.width * picture.height


def _reason(error: Exception) -> str:
    """Return the type and the message of an error as one line."""
    return f"{type(error).__name__}: {in_one_line(error)}"


def _stop_if_too_many(skipped: list[tuple[str, str]], seen: int, total: int, max_skipped: float) -> None:
    if len(skipped) <= max_skipped * total and len(skipped) < total:
        return
    raise UserError(
        f"{len(skipped)} of the first {seen} images (of {total}) are unreadable, "
        f"more than max_skipped={max_skipped} allows:\n{name_skipped(skipped)}\n"
        f"remove or repair them, or raise data.max_skipped"
    )


def _class_names(images: Images) -> list[str]:
    if images.labels is None:
        return []
    return list(images.classes) or list(map(str, range(int(np.max(images.labels)) + 1)))


def _refused(path: Path, error: OSError) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(f"the disk is full: {path} was not written; make room, or set data.cache or SSLKIT_CACHE")
    reason = error.strerror or str(error)
    return UserError(f"{path} cannot be written ({reason}); choose another place: data.cache or SSLKIT_CACHE")
