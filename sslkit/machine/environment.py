"""Description of this machine and its software: processor, cores, device names, versions."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


def core_count(workers: int | Literal["auto"] = -1) -> int:
    """Return `workers`, or for -1 and auto the number of cores that this process may use."""
    if workers != "auto" and workers > 0:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


PACKAGES = ("sslkit", "torch", "torchvision", "timm", "kornia", "ffcv", "numpy", "scikit-learn")


def environment() -> dict[str, Any]:
    """Return versions, hardware, git revision and command line of this process."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version for name in PACKAGES if (version := package_version(name))},
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "git": _revision(),
    }


def package_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _revision() -> str | None:
    """Return the git revision of the working directory, with a + if it has uncommitted changes."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def device_name(device: "torch.device") -> str:
    """Return the name of the GPU, or of the processor with torch's number of threads: "AMD EPYC, 2 threads"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
