"""Free memory of a device, of the machine or of a container, and peak memory."""

import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from sslkit.machine import distributed

if TYPE_CHECKING:
    pass

from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 1 << 62

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
"""cgroup files with the memory limit and usage, and the entry of memory.stat for reclaimable file pages."""


def free_memory(device: torch.device) -> int:
    """Return the bytes available to new tensors of this process on the device.

    The memory of the machine is divided by the number of processes that train together on it, because they all query
    it at the same time.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(_free_of_machine(), _free_of_groups()) // distributed.local_world()


def _free_of_machine() -> int:
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # Not Linux: assume 8 GiB, as in a small laptop.
        return 8 << 30


def _free_of_groups() -> int:
    """Return the free memory within the limits of control groups, as of a container or a batch job."""
    return min((_free_of(group, *names) for group, names in _groups()), default=UNLIMITED)


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the control groups that limit this process's memory, outermost first; some may not be visible to it."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        group, names = (GROUPS / "memory", V1) if kinds else (GROUPS, V2)
        yield group, names
        for name in Path(path).parts[1:]:
            group = group / name
            yield group, names


def _free_of(group: Path, limit: str, used: str, unused: str) -> int:
    try:
        most, now = (int((group / name).read_text()) for name in (limit, used))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Cached file pages count as used although the kernel reclaims them on demand.
        return max(most - now + int(statistics.get(unused, 0)), 0)
    except (OSError, ValueError):
        return UNLIMITED


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew; on a CPU where Linux allows it, otherwise the peak stays that of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        (PROC / "self" / "clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in GiB: of the device's allocator on CUDA, elsewhere the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    with suppress(OSError, StopIteration):
        lines = (PROC / "self" / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
