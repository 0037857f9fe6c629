"""Queries to the driver of NVIDIA GPUs (NVML): power limit, power draw, driver version.

Nothing is raised: values that the driver does not provide are None.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def power_limit(device: "torch.device") -> float | None:
    """Return the power limit of the GPU in watts."""
    return _ask(lambda nvml, card: nvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000, device)


def power_draw(device: "torch.device") -> float | None:
    """Return the current power draw of the GPU in watts."""
    return _ask(lambda nvml, card: nvml.nvmlDeviceGetPowerUsage(card) / 1000, device)


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver."""
    version: str | bytes | None = _ask(lambda nvml, card: nvml.nvmlSystemGetDriverVersion())
    return version.decode() if isinstance(version, bytes) else version


def uuid(device: "torch.device") -> str:
    """Return the UUID of a GPU; the driver's index differs from CUDA's if CUDA_VISIBLE_DEVICES hides GPUs."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _ask(question: Callable[[Any, Any], T], device: "torch.device | None" = None) -> T | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return question(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid(device)) if device else None)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
