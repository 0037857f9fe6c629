"""Standard streams that never end the work: what cannot be shown, or shown to nobody, is left out.

A closed terminal or pipe, a full disk and characters that the locale lacks cost lines of output, and nothing else.
"""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

_lost: dict[str, OSError] = {}
"""The first error of each stream that output was lost to."""


def make_lenient() -> None:
    """Make standard output and error lenient, for the rest of the process."""
    _open_descriptors()
    sys.stdout = _lenient(sys.stdout, "standard output")
    sys.stderr = _lenient(sys.stderr, "standard error")


def lost_output() -> str | None:
    """Return why results on standard output are lost; None if they are not, or if the reader has had enough (head)."""
    error = _lost.get("standard output")
    return error.strerror if error and error.errno != errno.EPIPE else None


class _Unfailing(io.RawIOBase):
    """Writes to a descriptor, without a buffer, so that a signal may interrupt and write too; drops what fails."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__()
        self._descriptor, self.name = descriptor, name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._write_some(rest) :]
        except OSError as error:
            _lost.setdefault(self.name, error)
        return len(data)

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            select.select([], [self._descriptor], [])
            return 0


def _open_descriptors() -> None:
    """Open standard descriptors that are closed: files that the work opens would get their numbers, and messages."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _lenient(stream: TextIO, name: str) -> TextIO:
    """Return a lenient stream in place of a file's; others, such as those of notebooks, stay."""
    try:
        descriptor = stream.fileno()
        stream.flush()
    except (AttributeError, ValueError, OSError):
        return stream
    raw: Any = _Unfailing(descriptor, name)
    return io.TextIOWrapper(raw, stream.encoding, "replace", line_buffering=True, write_through=True)
