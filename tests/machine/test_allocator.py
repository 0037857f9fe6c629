"""Freed memory is kept for the next step, and given back afterwards."""

import os
import resource
import sys
from subprocess import run

import pytest
from helpers.paths import PYTHONPATH

from sslkit.machine import allocator
from sslkit.machine.allocator import freed_memory

needs_glibc = pytest.mark.skipif(not sys.platform.startswith("linux") or allocator._glibc() is None, reason="no glibc")
# Blocks above 32 MB, which glibc would return at once; in a process of its own, whose heap has no gaps of that size.
LOOK = """
import resource, torch
from sslkit.machine.allocator import freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

# The heap must first have grown to where an aligned block fits.
default = min(faults() for _ in range(10))
with freed_memory(keep=True):
    kept = min(faults() for _ in range(10))
    held = resident()
print(default, kept, held - resident())
"""


@needs_glibc
def test_a_block_that_was_freed_comes_without_new_pages_and_only_inside():
    done = run(
        [sys.executable, "-c", LOOK], env=os.environ | {"PYTHONPATH": PYTHONPATH}, capture_output=True, text=True
    )
    default, kept, given_back = (int(number) for number in done.stdout.split())
    pages = 64 * 2**20 // resource.getpagesize()
    assert default > pages / 2
    assert kept < pages / 10
    assert given_back > pages / 2


@needs_glibc
def test_it_is_afterwards_as_it_was_before():
    before = allocator._mode
    with freed_memory(keep=True):
        with pytest.raises(ValueError, match="default"):
            fail_without_keeping()
        assert allocator._mode == "kept"
    assert allocator._mode == before


@freed_memory(keep=False)
def fail_without_keeping():
    raise ValueError(allocator._mode)


LIMITED = """
import resource, torch
from sslkit.machine.allocator import freed_memory

def addresses():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

resource.setrlimit(resource.RLIMIT_AS, (addresses() + 2**32, resource.RLIM_INFINITY))
with freed_memory(keep=True):
    for _ in range(2):  # By default glibc puts the large ones into the heap once it has seen one freed.
        before = addresses()
        blocks = [torch.ones(2**n, dtype=torch.uint8) for n in 30 * [21, 10]]
        held = addresses() - before
        del blocks[::2]  # What is left pins a heap.
    print(held, addresses() - before)
"""


@needs_glibc
def test_in_a_limited_address_space_what_is_freed_leaves_it():
    done = run(
        [sys.executable, "-c", LIMITED], env=os.environ | {"PYTHONPATH": PYTHONPATH}, capture_output=True, text=True
    )
    held, left = (int(number) for number in done.stdout.split())
    assert held > 30 * 2**21
    assert left < held / 5


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with freed_memory(keep=True):
        assert allocator._mode == "default"
