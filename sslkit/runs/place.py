"""The folder of a run: one process claims it, and holds its lock for as long as it trains."""

import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sslkit.config.run import RunConfig
from sslkit.errors import UserError
from sslkit.machine.atomic import recover
from sslkit.machine.files import reason, writing

LOCK = ".lock"
"""File in the run's folder that the system locks until its process ends, however that ends; it names the process."""
LONGEST = 120
"""Most bytes of a default name: file systems allow 255, and some data folders use them all."""


class Place:
    """A run's folder, held by this process between `take` and `release`."""

    def __init__(self, folder: Path, made: bool = False) -> None:
        """made: the folder was made for this run, and is removed if nothing comes of it."""
        self.folder = folder
        self._made = made
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)

    def take(self) -> "Place":
        """Lock the folder, and remove what killed processes left half written in it.

        Raises UserError that names the process which holds it, or the reason of the system.
        """
        with writing(self.folder, "choose another place with out="):
            try:
                self._lock.acquire()
            except Timeout as taken:
                holder = self._holder()
                raise UserError(f"{self.folder} is in use by {holder}; wait until that has ended") from taken
            # Some systems let nobody write to a locked file; then the holder has no name.
            with suppress(OSError):
                (self.folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        recover(self.folder)
        return self

    def release(self) -> None:
        self._lock.release()

    def discard(self) -> None:
        """Release the folder, and remove what was made for a run that has written nothing."""
        if not is_used(self.folder):
            (self.folder / LOCK).unlink(missing_ok=True)
        self.release()
        if self._made and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _holder(self) -> str:
        try:
            return (self.folder / LOCK).read_text(encoding="utf-8", errors="replace").strip() or "another process"
        except OSError:
            return "another process"


def claim(config: RunConfig) -> Place:
    """Make and lock the folder of a new run: `out`, or the first default name that is free.

    Raises UserError if `out` is another run's, in use, or not writable.
    """
    if config.out:
        return _claim(config.out)
    for path in default_paths(config):
        if not is_used(path):
            try:
                return _claim(path)
            except _InUse:
                continue
    raise AssertionError("there is always one more number")


def default_paths(config: RunConfig) -> Iterator[Path]:
    """Yield the names that a run without `out` may have, in order: runs/METHOD-BACKBONE-DATA, then -2, -3 ..."""
    root = getattr(config.data.options, "root", None)
    data = _called(Path(root).resolve()) if root else Path(config.data.name).stem
    name = re.sub(r"[^\w.+-]+", "-", f"{config.method.name}-{config.backbone.name}-{data}")
    base = Path("runs", name.encode()[:LONGEST].decode(errors="ignore"))
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.name}-{number}")
        number += 1


def problem(config: RunConfig) -> str | None:
    """Return why the run cannot be written where it is to be, with the mend; None if it can. Nothing is created."""
    path = config.out or next(default_paths(config)).parent
    try:
        _check_writable(path)
        used = config.out is not None and is_used(path)
    except (OSError, ValueError) as error:
        return f"{_shortened(path)} cannot be written ({reason(error)}); choose another place with out="
    return f"{path} already contains files; choose another, or `sslkit resume {path}`" if used else None


def is_used(folder: Path) -> bool:
    """Return True if there is anything but a lock, and what a process left that was killed while it made the folder."""
    if not folder.is_dir():
        return os.path.lexists(folder)
    return any(name != LOCK and not re.fullmatch(r"\..*\.tmp", name) for name in os.listdir(folder))


class _InUse(UserError):
    """Another process came first."""


def _claim(path: Path) -> Place:
    with writing(_shortened(path), "choose another place with out="):
        _check_writable(path)
        made = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
    place = Place(path, made)
    try:
        place.take()
    except UserError as error:
        raise _InUse(str(error)) from error
    if is_used(path):
        place.release()
        raise _InUse(f"{path} already contains files; choose another, or `sslkit resume {path}`")
    return place


def _check_writable(path: Path) -> None:
    """Raise OSError if a folder cannot be made there."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        if path.parent != path:
            _check_writable(path.parent)
        return
    if not path.exists():
        raise FileNotFoundError(2, "It is a link to nothing", str(path))
    if not stat.S_ISDIR(path.stat().st_mode):
        raise NotADirectoryError(20, "Not a directory", str(path))
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", str(path))


def _called(data: Path) -> str:
    """Return the name of a data folder, or of a file without its ending; a folder may be called photos.v2."""
    return data.name if data.is_dir() else data.stem


def _shortened(path: Path) -> Path:
    return path if len(str(path)) <= LONGEST else Path(f"{str(path)[:LONGEST]}…")
