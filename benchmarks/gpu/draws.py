"""Random numbers that are the same on every device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class DrawsOnCPU(TorchDispatchMode):
    """Context in which random numbers for any device come from the CPU's global generator.

    The generators of CPU and GPU give different numbers for one seed, so what draws could not be compared.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not draws(func):
            return func(*args, **kwargs)
        kwargs_on_cpu = tree_map(_to("cpu"), kwargs) | _on_cpu(kwargs)
        if func._schema.is_mutable:
            filled = torch.empty_like(args[0], device="cpu")
            return args[0].copy_(func(filled, *tree_map(_to("cpu"), args[1:]), **kwargs_on_cpu))
        drawn = func(*tree_map(_to("cpu"), args), **kwargs_on_cpu)
        return tree_map(_to(_device_of(args, kwargs)), drawn)


def draws(func: Any) -> bool:
    """Return True if an operation of torch takes numbers from a generator; attention does only with dropout."""
    return torch.Tag.nondeterministic_seeded in func.tags and "attention" not in func.name()


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the device that an operation names, or that of its first tensor, or the CPU."""
    tensors = (value for value in args if isinstance(value, Tensor))
    return kwargs.get("device") or next((tensor.device for tensor in tensors), "cpu")


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: "cpu" if name == "device" else None for name in ("device", "generator") if name in kwargs}


def _to(device: Any) -> Callable[[Any], Any]:
    return lambda value: value.to(device) if isinstance(value, Tensor) else value
