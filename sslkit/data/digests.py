"""Digests of all bytes of files, computed in threads; an index in the cache spares unchanged files another reading."""

import os
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from sslkit.data.threads import ordered_map
from sslkit.machine.atomic import recover, replacing
from sslkit.machine.cache import cache_dir, digest
from sslkit.machine.environment import core_count

BYTES = 16
"""Length of a digest: 128 bits of xxh3, which is as fast as memory."""
UNREADABLE = bytes(BYTES)
"""In place of the digest of a file that cannot be read."""
BLOCK = 1 << 20
CHUNK = 32
"""Files that a thread takes at a time."""
MOST_THREADS = 16
SETTLED = 1.0
"""Seconds after its last change before a file enters the index: a second change within one tick of the clock is not
seen in its times."""
FEW = 8
"""Up to so many files have an index of their own; more share that of their folder."""


def file_digests(
    root: Path,
    names: Sequence[str],
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Return a digest of all bytes of each file `root/name`, uint8 [N, 16]; zeros for a file that cannot be read.

    A file of the same path, inode, size, and times of modification and change as at the last reading is not read
    again. cache: as the setting `data.cache`. `progress(done, total)` is called while files are read.
    """
    started = time.time_ns()
    index = _index_file(root, names, cache)
    stats = _stats(root, names)
    digests, known = _recall(index, names, stats)
    missing = np.flatnonzero(~known)
    for rows, found in _read(root, names, missing, progress):
        digests[rows] = found
    if len(missing):
        _keep(index, names, stats, digests, started)
    return digests


def file_digest(path: Path, cache: Path | None = None) -> str:
    """Return the digest of one file as text; see `file_digests`."""
    found: bytes = file_digests(path.parent, [path.name], cache)[0].tobytes()
    return found.hex()


def remember(path: Path, content: str, cache: Path | None = None) -> None:
    """Note the digest of a file that this process has just written, so that it is not read again."""
    names = [path.name]
    digests = np.frombuffer(bytes.fromhex(content), np.uint8)[None]
    _keep(_index_file(path.parent, names, cache), names, _stats(path.parent, names), digests, None)


def digest_of(*parts: bytes | NDArray[np.generic]) -> str:
    """Return one digest of several pieces of content, as text."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(np.int64(part.nbytes if isinstance(part, np.ndarray) else len(part)).tobytes())
        state.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    return state.hexdigest()


def images_digest(digests: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> str:
    """Return one digest of images in their order, from the digests of each, uint8 [N, 16], and their labels."""
    return digest_of(digests, b"" if labels is None else labels)


def array_digests(arrays: Iterable[NDArray[np.generic]]) -> NDArray[np.uint8]:
    """Return a digest of the bytes of each array, uint8 [N, 16]."""
    joined = b"".join(xxhash.xxh3_128_digest(np.ascontiguousarray(array).data) for array in arrays)
    return np.frombuffer(joined, np.uint8).reshape(-1, BYTES)


def read_digest(path: Path) -> bytes:
    """Return the digest of a file's bytes, without the index. Raises OSError."""
    state = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.digest()


def _read(
    root: Path, names: Sequence[str], rows: NDArray[np.int64], progress: Callable[[int, int], None] | None
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield (rows, their digests) of the files in these rows."""
    chunks = [rows[k : k + CHUNK] for k in range(0, len(rows), CHUNK)]
    # More threads than cores: they wait for the disk.
    threads = min(MOST_THREADS, max(4, core_count()), max(1, len(chunks)))
    done = 0
    for chunk, found in zip(
        chunks, ordered_map(partial(_digests_of_rows, root, names), chunks, threads, ahead=4 * threads)
    ):
        yield chunk, found
        done += len(chunk)
        if progress:
            progress(done, len(rows))


def _digests_of_rows(root: Path, names: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    found = b"".join(_digest_or_zeros(root / names[row]) for row in rows.tolist())
    return np.frombuffer(found, np.uint8).reshape(-1, BYTES)


def _digest_or_zeros(path: Path) -> bytes:
    try:
        return read_digest(path)
    except OSError:
        return UNREADABLE


def _stats(root: Path, names: Sequence[str]) -> NDArray[np.int64]:
    """Return inode, size, and times of modification and change in nanoseconds, int64 [N, 4]; zeros if unknown."""
    prefix = os.path.join(root, "")
    return np.array([_stat(prefix + name) for name in names], np.int64).reshape(-1, 4)


def _stat(path: str) -> tuple[int, int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0, 0
    # Inodes of some file systems take all 64 bits.
    return found.st_ino & (2**63 - 1), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _index_file(root: Path, names: Sequence[str], cache: Path | None) -> Path:
    home = os.path.abspath(root)
    named = re.sub(r"[^\w.+-]+", "-", os.path.basename(home))[:40]
    return cache_dir(cache) / "digests" / f"{named}-{digest(home, *names[:FEW] if len(names) <= FEW else ())}.npz"


def _recall(index: Path, names: Sequence[str], stats: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return (digests, which of them are known) of files that have not changed since the index was written."""
    digests, known = np.zeros((len(names), BYTES), np.uint8), np.zeros(len(names), bool)
    try:
        with open(index, "rb") as file, np.load(file, allow_pickle=False) as saved:
            old_names = saved["names"].tobytes().split(b"\0")
            old_stats, old_digests = saved["stats"].reshape(-1, 4), saved["digests"].reshape(-1, BYTES)
        if not len(old_names) == len(old_stats) == len(old_digests) or old_digests.dtype != np.uint8:
            return digests, known
    # A damaged index only costs another reading; its arrays may be missing, cut, of other types, or marked encrypted.
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return digests, known
    rows = dict(zip(old_names, range(len(old_names))))
    old = np.array([rows.get(os.fsencode(name), -1) for name in names], np.int64)
    known = (old >= 0) & (old_stats[old] == stats).all(1)
    digests[known] = old_digests[old[known]]
    return digests, known


def _keep(
    index: Path, names: Sequence[str], stats: NDArray[np.int64], digests: NDArray[np.uint8], started: int | None
) -> None:
    """Write the index, without files that could not be read or have only just changed; None: keep all."""
    kept = digests.any(1) & (stats[:, 1:].any(1) | (stats[:, 0] > 0))
    if started is not None:
        kept &= stats[:, 2:].max(1, initial=0) < started - SETTLED * 1e9
    rows = np.flatnonzero(kept)
    joined = b"\0".join(os.fsencode(names[row]) for row in rows.tolist())
    # Without an index, files are read again; a full or read-only cache must not end a run here.
    with suppress(OSError), replacing(index) as temporary, open(temporary, "wb") as file:
        np.savez(file, names=np.frombuffer(joined, np.uint8), stats=stats[rows], digests=digests[rows])
    recover(index.parent)
