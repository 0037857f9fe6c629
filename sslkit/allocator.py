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

_keeping = False
"""What the allocator was last told: it cannot be asked."""


@contextmanager
def freed_memory(keep: bool) -> Iterator[None]:
    """Inside, freed memory is kept, or given back to the system as it is by default; afterwards as before.

    For the whole process, all threads. Does nothing where the C library has no `mallopt` (macOS, musl), or where
    the address space is limited: kept memory would be missing from what does not come from malloc.
    """
    before = _keeping
    _tell(keep and not _limited())
    try:
        yield
    finally:
        _tell(before)


def _tell(keep: bool) -> None:
    global _keeping
    libc = _glibc()
    if libc is None or keep == _keeping:
        return
    _keeping = keep
    if keep:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)
    else:
        # Where glibc's thresholds, which grow by themselves, are after the first large blocks.
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MB)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MB)
        libc.mallopt(_MMAP_MAX, 65536)
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
