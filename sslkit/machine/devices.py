"""The device a run computes on: which one, waiting for it, and giving back what it holds."""

import gc

import torch

from sslkit.machine import distributed


def pick_device(name: str) -> torch.device:
    """auto: this process's GPU, else Apple's, else the CPU. A GPU also becomes the one that CUDA calls are about."""
    device = torch.device(_first_there_is() if name == "auto" else name)
    if device.type == "cuda":
        device = torch.device("cuda", distributed.local_rank() if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def _first_there_is() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and distributed.world() == 1 else "cpu"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given: only then does a clock on the host tell the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release(device: torch.device) -> None:
    """Give back memory that nothing uses any more: that of objects in cycles, and what CUDA's allocator keeps."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
