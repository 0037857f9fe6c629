"""Sizes of files, of folders and of free space."""

import os
import shutil
from pathlib import Path

from sslkit.machine.units import BYTES, scaled


def in_words(size: float) -> str:
    """Return a number of bytes with three digits and the unit of disks, powers of 1000: "5.4 GB"."""
    return scaled(size, BYTES)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; what vanishes or cannot be read counts as nothing."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(size_of(inner) for inner in path.iterdir())
        return os.lstat(path).st_size
    except OSError:
        return 0


def free_at(path: Path) -> int:
    """Return the free bytes of the file system that a path is on, or will be on when it is made."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
