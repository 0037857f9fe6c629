"""NVIDIA cards as their driver knows them (NVML): limits and draw of power, version of the driver.

Nothing is raised: a figure that the driver does not give is None.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def power_limit(device: "torch.device") -> float | None:
    """Watts that the card may draw."""
    return _ask(lambda nvml, card: nvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000, device)


def power_draw(device: "torch.device") -> float | None:
    """Watts that the card draws now."""
    return _ask(lambda nvml, card: nvml.nvmlDeviceGetPowerUsage(card) / 1000, device)


def driver_version() -> str | None:
    """Version of the NVIDIA driver."""
    version: str | bytes | None = _ask(lambda nvml, card: nvml.nvmlSystemGetDriverVersion())
    return version.decode() if isinstance(version, bytes) else version


def uuid(device: "torch.device") -> str:
    """The driver's name of a card; its number is another one where CUDA_VISIBLE_DEVICES hides cards."""
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
