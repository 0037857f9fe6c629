"""How much memory this process holds."""

from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")


def private_bytes() -> int:
    """Memory that no file stands behind: pages of a mapped file come and go with the system's cache. Linux only."""
    if not STATUS.exists():
        pytest.skip("only Linux tells what of a process's memory is its own")
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
