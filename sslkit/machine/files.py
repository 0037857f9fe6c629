"""The boundary of a file: what speaks against it becomes one sentence that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sslkit.errors import UserError, in_one_line

UNREADABLE = (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, SafetensorError)
"""Exceptions that the content of a damaged file, or the system, can raise while it is read and checked."""
UNWRITABLE = (OSError, SafetensorError)
"""Exceptions of a full disk, or a place that may not be written."""


@contextmanager
def reading(path: Path, mend: str) -> Iterator[None]:
    """Turn whatever a damaged file raises inside the block into a UserError that names it, the reason and the mend."""
    try:
        yield
    except UNREADABLE as error:
        what = "cannot be read" if isinstance(error, OSError) else "is damaged"
        raise UserError(f"{path} {what} ({reason(error)}); {mend}") from error


@contextmanager
def writing(path: Path, mend: str) -> Iterator[None]:
    """Turn a full disk or a place that may not be written into a UserError that names the file and the mend."""
    try:
        yield
    except UNWRITABLE as error:
        raise UserError(f"{path} cannot be written ({reason(error)}); {mend}") from error


def reason(error: BaseException) -> str:
    """Return the system's words for an OSError without its number and path; any other message in one line."""
    words = error.strerror if isinstance(error, OSError) else None
    return words[0].lower() + words[1:] if words else in_one_line(error)
