"""Freed memory is kept for the next step, and given back afterwards."""

import resource
import sys

import pytest
import torch

from sslkit import allocator
from sslkit.allocator import freed_memory

needs_glibc = pytest.mark.skipif(not sys.platform.startswith("linux") or allocator._glibc() is None, reason="no glibc")
BYTES = 64 * 2**20
"""A block above 32 MB, which glibc would return at once."""


def fewest_page_faults() -> int:
    """Of filling a block, over a few: the heap must first have grown to where an aligned block fits."""
    return min(_page_faults() for _ in range(10))


def _page_faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BYTES, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@needs_glibc
def test_a_block_that_was_freed_comes_without_new_pages_and_only_inside():
    pages = BYTES // resource.getpagesize()
    with freed_memory(keep=False):
        assert fewest_page_faults() > pages / 2
        with freed_memory(keep=True):
            assert fewest_page_faults() < pages / 10
        assert fewest_page_faults() > pages / 2


@needs_glibc
def test_it_is_afterwards_as_it_was_before():
    before = allocator._keeping
    with freed_memory(keep=True):
        with pytest.raises(ValueError, match="within"):
            fail_without_keeping()
        assert allocator._keeping
    assert allocator._keeping == before


@freed_memory(keep=False)
def fail_without_keeping():
    raise ValueError("kept" if allocator._keeping else "within")


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with freed_memory(keep=True):
        assert not allocator._keeping
