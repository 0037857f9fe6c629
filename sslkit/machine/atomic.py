"""Atomic writes of files and folders."""

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

STALE_AFTER = 24 * 3600
"""Seconds after which another writer's temporary file is assumed to be left over from a killed process."""
TEMPORARY, SET_ASIDE = ".tmp", ".old.tmp"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path` (file or folder), which replaces `path` when the block succeeds.

    After a failure, or a kill at any moment, `path` is either unchanged or already replaced. One exception: no portable
    system call exchanges two folders, so a kill between the two renames that replace a folder leaves the old one,
    complete, under another name, from which `recover` restores it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, TEMPORARY)
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            to_disk(file)
        old = _put_in_place(temporary, path)
        to_disk(path.parent)
        if old:
            # The new folder is in place; `recover` removes what cannot be removed now.
            shutil.rmtree(old, ignore_errors=True)
    finally:
        _remove(temporary)


def recover(folder: Path, name: str = "*") -> None:
    """Clean up after killed processes in `folder`, for files and folders that match the glob pattern `name`.

    A folder whose replacement was interrupted gets its name back; temporary files and folders are removed if their
    writer has ended or, as a writer on another machine may have, if they are older than a day. Must not be called
    while another process replaces the same folder.
    """
    for old in folder.glob(f".{name}.*{SET_ASIDE}"):
        home = old.with_name(old.name[1:].removesuffix(SET_ASIDE).rsplit(".", 2)[0])
        # Another process of the run may do the same at the same time.
        with suppress(OSError):
            _remove(old) if home.exists() else os.rename(old, home)
    for remains in folder.glob(f".{name}.*{TEMPORARY}"):
        with suppress(OSError):
            if _is_left_over(remains) and not remains.name.endswith(SET_ASIDE):
                _remove(remains)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Return the text of a JSON file for people to read."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _beside(path: Path, ending: str) -> Path:
    """Return a unique path next to `path` that names its writer; random, as containers may share process ids."""
    return path.with_name(f".{path.name}.{os.getpid()}@{_host()}.{secrets.token_hex(4)}{ending}")


def _host() -> str:
    """Return a short name for this machine and, in a container, for its processes, whose ids others may share."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return hashlib.blake2b(f"{socket.gethostname()} {processes}".encode(), digest_size=4).hexdigest()


def _is_left_over(temporary: Path) -> bool:
    writer = re.search(r"\.(\d+)@(\w+)\.\w+\.tmp$", temporary.name)
    if writer and writer[2] == _host() and not psutil.pid_exists(int(writer[1])):
        return True
    return time.time() - temporary.stat().st_mtime > STALE_AFTER


def _put_in_place(new: Path, path: Path) -> Path | None:
    """Rename `new` to `path`; return the new path of a folder that was replaced, or None if there was none."""
    if not (new.is_dir() and path.is_dir()):
        os.replace(new, path)
        return None
    old = _beside(path, SET_ASIDE)
    try:
        os.rename(path, old)
        os.replace(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    return old


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Flush to disk; otherwise a power failure after the rename can leave an empty file under the final name."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
