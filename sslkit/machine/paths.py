"""Paths as people write them."""

from pathlib import Path


def at_home(path: str | Path) -> Path:
    """Return the path with `~` replaced by the home folder; a name that begins with ~ and is no user's stays."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
