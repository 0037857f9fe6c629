"""The .beton file format, version 2, read and written without FFCV.

FFCV streams these files (Leclerc et al. 2023, "FFCV: Accelerating Training by Removing Data Bottlenecks",
section 3), but its writer can neither skip a corrupt image nor survive the death of a worker, and without
FFCV installed a run must give the same result. The layout, all little-endian:

        header | field descriptors | one metadata row per image | padding | pages of pixels | allocation table

A record (one image's pixels, raw or JPEG) never straddles a page; the allocation table gives each record's
size.
"""

import hashlib
import math
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sslkit.data.digests import array_digests
from sslkit.errors import UserError

VERSION = 2
JPEG, RAW = 0, 1
SUBSAMPLING = "420"
"""Chroma subsampling of the JPEGs written here, as by FFCV's own writer and in almost every photograph."""

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])

INT_FIELD, IMAGE_FIELD = 1, 2
POINTER_AND_SIZE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
METADATA = {
    0: np.dtype("<f8"),
    INT_FIELD: np.dtype("<i8"),
    IMAGE_FIELD: IMAGE,
    3: POINTER_AND_SIZE,  # bytes
    4: np.dtype("<u8"),  # array
    5: POINTER_AND_SIZE,  # JSON
    6: np.dtype("<u8"),  # tensor
}
"""FFCV's field types -> dtype of their entry in a metadata row."""

SMALLEST_PAGE, LARGEST_PAGE = 1 << 21, 1 << 31


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encode uint8 [H, W, 3] as JPEG bytes; quality 1..100."""
    contiguous = np.ascontiguousarray(pixels)
    content: bytes = simplejpeg.encode_jpeg(contiguous, quality, colorspace="RGB", colorsubsampling=SUBSAMPLING)
    return content


def decode_jpeg(record: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decode into `out`, uint8 [H, W, 3], bit for bit as FFCV does. Raises ValueError on a damaged record.

    FFCV calls libjpeg-turbo with its fast DCT and smooth chroma upsampling, and so does this function.
    """
    simplejpeg.decode_jpeg(record, "RGB", fastdct=True, fastupsample=False, buffer=out)


class Beton:
    """A .beton file opened for reading; its pages stay on disk, mapped into memory.

    Raises UserError if the file is not a .beton, is truncated, or holds no images that can be read here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._read_tables(file, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of every image, or None if they differ."""
        # Cached, because it scans the whole table and `read` needs it for every batch.
        heights, widths = self._images["height"], self._images["width"]
        same = (heights == heights[0]).all() and (widths == widths[0]).all()
        return (int(heights[0]), int(widths[0])) if same else None

    @cached_property
    def mark(self) -> str:
        """Identify these images by a hash of sizes, labels and positions of all, and of the pixels of two."""
        state = hashlib.blake2b(self._metadata.data, digest_size=10)
        for row in (0, -1):
            state.update(self._record(row).data)
        return state.hexdigest()

    def digests(self, rows: Iterable[int]) -> NDArray[np.uint8]:
        """Return a digest of the stored bytes of each image, uint8 [n, 16]."""
        self.check_whole()
        return array_digests(self._record(row) for row in rows)

    def check_whole(self) -> None:
        """Raise UserError if the file has been cut since it was opened: to read past its end would kill the process."""
        if self._map.size() < self._end:
            raise UserError(f"{self.path} has been cut short while it was open; start again, and it is packed again")

    def size_of(self, row: int) -> tuple[int, int]:
        """Return (height, width) of one image."""
        return int(self._images["height"][row]), int(self._images["width"][row])

    def image(self, row: int) -> NDArray[np.uint8]:
        """Return one image of any size, uint8 [H, W, 3]."""
        self.check_whole()
        out = np.empty((*self.size_of(row), 3), np.uint8)
        self._decode(row, out)
        return out

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return images of one common size, uint8 [n, H, W, 3], in the order of `rows`."""
        if self.shape is None:
            raise ValueError(f"the images of {self.path} differ in size; read them one by one")
        self.check_whole()
        shape = (len(rows), *self.shape, 3)
        if self._all_raw:
            windows = np.lib.stride_tricks.sliding_window_view(self._bytes, math.prod(shape[1:]))
            return windows[self._pointers[rows]].reshape(shape)
        out = np.empty(shape, np.uint8)
        for k, row in enumerate(rows.tolist()):
            self._decode(row, out[k])
        return out

    def _decode(self, row: int, out: NDArray[np.uint8]) -> None:
        record = self._record(row)
        if self._images["mode"][row] == RAW:
            out[:] = record.reshape(out.shape)
            return
        try:
            decode_jpeg(record, out)
        except ValueError as error:
            raise UserError(
                f"image {row} of {self.path} cannot be decoded ({error}): the file is damaged; pack it again"
            ) from error

    def _record(self, row: int) -> NDArray[np.uint8]:
        start = int(self._pointers[row])
        return self._bytes[start : start + int(self._sizes[row])]

    @cached_property
    def _map(self) -> mmap.mmap:
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._map, np.uint8)

    def _read_tables(self, file: BinaryIO, size: int) -> None:
        header = _table(file, HEADER, 1, self.path)[0]
        if header["version"] != VERSION or not 0 < header["num_fields"] < 1000:
            raise UserError(f"{self.path} is not a .beton file of version {VERSION}; make one with `sslkit pack`")
        self.page_size = int(header["page_size"])
        fields = _table(file, FIELD, int(header["num_fields"]), self.path)
        self.fields = {_field_name(f["name"]): int(f["type_id"]) for f in fields}
        rows = int(header["num_samples"])
        metadata_type = self._metadata_type(fields["type_id"].tolist())
        if rows * metadata_type.itemsize > size:
            raise _cut_short(self.path)
        metadata = _table(file, metadata_type, rows, self.path)
        table = int(header["alloc_table_ptr"])
        if table == 0 or table > size or (size - table) % ALLOCATION.itemsize:
            raise _cut_short(self.path)
        self._end = table
        """Position after the last pixel, in bytes."""
        file.seek(table)
        allocations = _table(file, ALLOCATION, (size - table) // ALLOCATION.itemsize, self.path)
        self._choose_fields(metadata)
        self._locate(allocations, table)

    def _metadata_type(self, type_ids: list[int]) -> np.dtype:
        for name, type_id in self.fields.items():
            if type_id not in METADATA:
                raise UserError(
                    f"{self.path} has a field {name!r} of a custom type, whose size only its author knows; "
                    f"write the file again without it"
                )
        # The nameless fields become f0, f1, ...: exactly FFCV's own dtype, including alignment.
        return np.dtype([("", METADATA[t]) for t in type_ids], align=True)

    def _choose_fields(self, metadata: NDArray[Any]) -> None:
        image, label = self._field("image", IMAGE_FIELD), self._field("label", INT_FIELD)
        if image is None or not len(metadata):
            raise UserError(f"{self.path} holds no images; its fields are: {', '.join(self.fields)}")
        self.image_field = list(self.fields)[image]
        self._metadata = metadata
        self._images = metadata[f"f{image}"]
        self.labels: NDArray[np.int64] | None = None if label is None else metadata[f"f{label}"].astype(np.int64)

    def _field(self, preferred: str, type_id: int) -> int | None:
        """Return the position of the field called `preferred`, else of the first one of its type, else None."""
        fitting = [k for k, t in enumerate(self.fields.values()) if t == type_id]
        names = list(self.fields)
        return next((k for k in fitting if names[k] == preferred), next(iter(fitting), None))

    def _locate(self, allocations: NDArray[Any], end: int) -> None:
        """Locate every image's record and check it against the file, so that reading stays within bounds."""
        order = np.argsort(allocations["ptr"])
        pointers, sizes = allocations["ptr"][order], allocations["size"][order]
        self._pointers = self._images["data_ptr"].astype(np.int64)
        entries = np.searchsorted(pointers, self._images["data_ptr"]).clip(max=max(len(pointers) - 1, 0))
        if not len(pointers) or (pointers[entries] != self._images["data_ptr"]).any():
            raise _cut_short(self.path)
        self._sizes = sizes[entries].astype(np.int64)
        raw = self._images["mode"] == RAW
        bytes_raw = self._images["height"].astype(np.int64) * self._images["width"] * 3
        if (self._pointers + self._sizes > end).any() or (self._sizes[raw] != bytes_raw[raw]).any():
            raise _cut_short(self.path)
        self._all_raw = bool(raw.all())


@dataclass(frozen=True)
class Record:
    """One image ready to be written: its pixels as RAW or JPEG bytes, and its label (-1: unknown)."""

    mode: int
    height: int
    width: int
    data: bytes
    label: int = -1


class BetonWriter:
    """Writes records in the order in which they are added, in bounded memory; FFCV reads the result.

    `capacity` is the largest number of records: the metadata precede the pixels, so their space is
    reserved.
    """

    def __init__(self, file: BinaryIO, capacity: int, largest_record: int) -> None:
        self._file = file
        self._page_size = _page_size(largest_record)
        self._metadata = np.zeros(capacity, np.dtype([("", IMAGE), ("", "<i8")], align=True))
        self._allocations = np.zeros(capacity, ALLOCATION)
        self._count = 0
        before_pages = HEADER.itemsize + 2 * FIELD.itemsize + self._metadata.nbytes
        self._position = -(-before_pages // self._page_size) * self._page_size
        file.seek(self._position)

    def __len__(self) -> int:
        return self._count

    def add(self, record: Record) -> None:
        """Append one image."""
        size = len(record.data)
        if size > self._page_size:
            raise ValueError(f"a record of {size} bytes does not fit a page of {self._page_size}")
        page_end = (self._position // self._page_size + 1) * self._page_size
        if self._position + size > page_end:
            self._position = page_end
            self._file.seek(page_end)
        self._file.write(record.data)
        image = (record.mode, record.width, record.height, self._position)
        self._metadata[self._count] = (image, record.label)
        self._allocations[self._count] = (self._count, self._position, size)
        self._position += size
        self._count += 1

    def finish(self) -> None:
        """Write the tables, without which the file is not a .beton."""
        # FFCV's process cache reads whole pages, including the last one. A hole in the file takes no disk space.
        table = -(-self._position // self._page_size) * self._page_size
        self._file.seek(table)
        self._file.write(self._allocations[: self._count].tobytes())
        header = np.zeros(1, HEADER)
        header[0] = (VERSION, 2, self._page_size, self._count, table)
        fields = np.zeros(2, FIELD)
        for field, type_id, name in zip(fields, (IMAGE_FIELD, INT_FIELD), (b"image", b"label")):
            field["type_id"] = type_id
            field["name"][: len(name)] = list(name)
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + self._metadata[: self._count].tobytes())


def _page_size(largest_record: int) -> int:
    size = SMALLEST_PAGE
    while size < largest_record:
        size *= 2
    if size > LARGEST_PAGE:
        raise ValueError(f"an image of {largest_record} bytes is more than a .beton page holds")
    return size


def _table(file: BinaryIO, dtype: np.dtype, count: int, path: Path) -> NDArray[Any]:
    content = file.read(dtype.itemsize * count)
    if len(content) < dtype.itemsize * count:
        raise _cut_short(path)
    return np.frombuffer(content, dtype, count)


def _field_name(name: NDArray[np.uint8]) -> str:
    return name.tobytes().decode("ascii", "replace").split("\0")[0]


def _cut_short(path: Path) -> UserError:
    return UserError(f"{path} is not a whole .beton file: it is damaged or was cut short; copy or pack it again")
