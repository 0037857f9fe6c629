"""Optimizer state as plain tensors and JSON."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NOT_STATE = ("params", "lr", "initial_lr", "fused", "foreach")
"""Entries of a group that the module, the schedule or the machine sets, and that are therefore not restored: a run may
be resumed with other kernels."""


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's state without pickle: contiguous tensors for safetensors, and the rest for JSON.

    Learning rates are left out, because the schedule computes them from the step.
    """
    tensors: dict[str, Tensor] = {}
    layouts: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for owner, (home, _) in _homes(optimizer).items():
        for name, value in home.items():
            key = f"{owner}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value.detach().contiguous()
                layouts[key] = {"stride": list(value.stride()), "on_cpu": value.device.type == "cpu"}
            elif _is_running(name, value):
                plain[key] = value
    return tensors, {"layouts": layouts, "plain": plain}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Restore the state returned by `optimizer_tensors`, in an optimizer created with the same settings and module.

    Every tensor is restored with its strides and kind of device (its parameter's, or the CPU), so that training
    continues bit-identically if the kernels are the same. Raises ValueError if the parameters do not correspond.
    """
    _state(optimizer).clear()
    homes = _homes(optimizer)
    for key, saved in [*tensors.items(), *rest["plain"].items()]:
        owner, _, name = key.partition(".")
        if owner not in homes:
            raise ValueError(f"saved optimizer state {key!r} does not belong to this optimizer")
        home, device = homes[owner]
        if key in rest["layouts"]:
            home[name] = _with_layout(saved, rest["layouts"][key], device, name in _on_device(optimizer))
        elif name not in NOT_STATE:
            home[name] = tuple(saved) if isinstance(home.get(name), tuple) else saved


def _homes(optimizer: torch.optim.Optimizer) -> dict[str, tuple[dict[str, Any], torch.device]]:
    """Return the dictionaries that hold state, with their device: "3" for parameter 3, "group1" for group 1."""
    state = _state(optimizer)
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    homes = {str(i): (state[p], p.device) for i, p in enumerate(parameters)}
    return homes | {f"group{i}": (group, group["params"][0].device) for i, group in enumerate(groups)}


def _state(optimizer: torch.optim.Optimizer) -> Any:
    # timm's Lookahead wraps an optimizer, which holds the state of both.
    return getattr(optimizer, "_base_optimizer", optimizer).state


def _on_device(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return names of state tensors that belong on their parameter's device in any case: fused Adam's step count."""
    return ("step",) if optimizer.defaults.get("fused") else ()


def _with_layout(saved: Tensor, layout: Mapping[str, Any], device: torch.device, on_device: bool) -> Tensor:
    device = torch.device("cpu") if layout["on_cpu"] and not on_device else device
    empty = torch.empty_strided(tuple(saved.shape), tuple(layout["stride"]), dtype=saved.dtype, device=device)
    return empty.copy_(saved)


def _is_running(key: str, value: Any) -> bool:
    """Return True if an entry is state and a plain value, such as a step count."""
    if key in NOT_STATE:
        return False
    items = value if isinstance(value, list | tuple) else [value]
    return all(item is None or isinstance(item, bool | int | float | str) for item in items)
