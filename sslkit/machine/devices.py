"""The device of a run: selection, synchronisation, release of memory."""

import gc

import torch

from sslkit.machine import distributed


def pick_device(name: str) -> torch.device:
    """Return the device of a name, and make a CUDA GPU the current one.

    auto: the GPU of this process, else Apple's GPU, else the CPU.
    """
    device = torch.device(_best_available() if name == "auto" else name)
    if device.type == "cuda":
        device = torch.device("cuda", distributed.local_rank() if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def _best_available() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and distributed.world() == 1 else "cpu"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work, so that timings on the host are correct."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release(device: torch.device) -> None:
    """Free unused memory: collect objects in reference cycles, and empty CUDA's caching allocator."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
