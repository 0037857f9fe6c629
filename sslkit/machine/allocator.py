"""Memory that a step frees stays with the process for the next step, where the allocator is glibc's.

glibc returns every block above 32 MB to the system at once and takes the next one from it anew, page by page: at
96 px and a batch of 256 that cost a step on the CPU a seventh of its time (benchmarks/LOG.md).
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MB = 2**20

_MODES = {
    # Where glibc's thresholds, which grow by themselves, are after the first large blocks.
    "default": {_MMAP_THRESHOLD: 32 * _MB, _TRIM_THRESHOLD: 64 * _MB, _MMAP_MAX: 65536},
    "kept": {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1},
    "given back": {_MMAP_THRESHOLD: _MB, _TRIM_THRESHOLD: _MB, _MMAP_MAX: 65536},
}
_mode = "default"
"""The mode that the allocator was last set to: it cannot be asked."""


@contextmanager
def freed_memory(keep: bool) -> Iterator[None]:
    """Keep freed memory inside the block, or inside such a block give it back to the system as by default.

    For the whole process, all threads, so it belongs to the commands and never to the library: without a block that
    keeps around it, `keep=False` does nothing. Nor does either where the C library has no `mallopt` (macOS, musl).
    Where the address space is limited all large blocks are given back at once, `keep` or not: the free parts of a
    heap would be missing from what does not come from malloc (oneDNN then crashed).
    """
    before = _mode
    if keep or before != "default":
        _set("given back" if _limited() else "kept" if keep else "default")
    try:
        yield
    finally:
        _set(before)


def _set(mode: str) -> None:
    global _mode
    libc = _glibc()
    if libc is None or mode == _mode:
        return
    _mode = mode
    for parameter, value in _MODES[mode].items():
        libc.mallopt(parameter, value)
    if mode != "kept":
        libc.malloc_trim(0)


def _limited() -> bool:
    try:
        import resource
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


@cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "gnu_get_libc_version") else None
