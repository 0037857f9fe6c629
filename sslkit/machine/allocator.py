"""Keep memory that a training step frees in the process for the next step, with glibc's allocator.

glibc returns every freed block above 32 MB to the system immediately and requests the next one again, page by page: at
96 px and a batch size of 256 this took a seventh of the time of a step on the CPU (benchmarks/LOG.md).
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
    # The values that glibc's dynamic thresholds reach after the first large blocks.
    "default": {_MMAP_THRESHOLD: 32 * _MB, _TRIM_THRESHOLD: 64 * _MB, _MMAP_MAX: 65536},
    "kept": {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1},
    "given back": {_MMAP_THRESHOLD: _MB, _TRIM_THRESHOLD: _MB, _MMAP_MAX: 65536},
}
_mode = "default"
"""The mode that the allocator was last set to, because glibc cannot be queried."""


@contextmanager
def freed_memory(keep: bool) -> Iterator[None]:
    """Keep freed memory in the process inside the block, or, with `keep=False`, return it to the system as by default.

    The setting affects all threads of the process, so only commands may use it, never the library: `keep=False` has no
    effect unless nested in a block with `keep=True`. Neither has an effect if the C library lacks `mallopt` (macOS,
    musl). If the address space is limited, all large blocks are returned immediately in both cases: free parts of the
    heap would be unavailable to allocations that bypass malloc (oneDNN crashed for lack of them).
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
