"""Removal of what is not needed any more: old checkpoints of runs, unused files of the cache, leftovers of kills."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from sslkit.config.run import Keep
from sslkit.machine import atomic
from sslkit.machine.files import writing
from sslkit.machine.sizes import size_of
from sslkit.runs.checkpoint import surplus
from sslkit.runs.directory import check_is_run
from sslkit.runs.place import Place
from sslkit.runs.progress import CHECKPOINTS

DAY = 24 * 3600
CACHES = {"packed images": "*.beton", "features": "features/*", "digests of images": "digests/*", "timings": "tune/*"}
"""Files of the cache that are made again when they are missing, by their names for readers. Downloads are not."""


@dataclass(frozen=True)
class Surplus:
    """A file or folder that can be removed."""

    path: Path
    why: str
    size: int
    """In bytes, its companions included."""


def of_run(run: Path, keep: int) -> Iterator[Surplus]:
    """Yield the checkpoints of a run except its newest `keep`, and what killed processes left in it.

    Raises UserError if `run` holds no run.
    """
    check_is_run(run)
    for path in surplus(run / CHECKPOINTS, Keep(last=keep)):
        yield Surplus(path, "an older checkpoint", size_of(path))
    yield from _leftovers(run)


def of_cache(folder: Path, days: float, most: float | None = None) -> Iterator[Surplus]:
    """Yield files of the cache that nothing has used for so many days, and then the longest unused beyond `most` bytes.

    What killed processes left in it is yielded too.
    """
    yield from _leftovers(folder)
    used = 0
    for path in sorted(cached(folder), key=last_use, reverse=True):
        size = sum(map(size_of, _with_companions(path)))
        used += size
        since = (time.time() - last_use(path)) / DAY
        if since > days:
            yield Surplus(path, f"not used for {since:.0f} days", size)
        elif most is not None and used > most:
            yield Surplus(path, "the cache is larger than it may be", size)


def cached(folder: Path) -> list[Path]:
    """Return the files of the cache that can be made again."""
    return [path for pattern in CACHES.values() for path in folder.glob(pattern) if not path.name.startswith(".")]


def last_use(path: Path) -> float:
    """Return the time at which a file was last read or written, in seconds since 1970."""
    try:
        stat = path.stat()
    except OSError:
        return 0.0
    return max(stat.st_atime, stat.st_mtime)


def remove(found: Iterable[Surplus], run: Path | None = None) -> None:
    """Remove what was found, in a run that no other process holds. Raises UserError if one does."""
    place = Place(run).take() if run else None
    try:
        for item in found:
            for path in _with_companions(item.path):
                with writing(path, "remove it by hand"):
                    atomic.remove(path)
    finally:
        if place:
            place.release()


def _leftovers(folder: Path) -> Iterator[Surplus]:
    for path in atomic.left_over(folder):
        yield Surplus(path, "left by a process that was killed", size_of(path))


def _with_companions(path: Path) -> list[Path]:
    """Return a file and those that describe it: x.beton has x.beton.json."""
    return [path, *path.parent.glob(f"{escape(path.name)}.*")] if path.suffix == ".beton" else [path]
