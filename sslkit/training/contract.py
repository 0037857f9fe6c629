"""Check once what a method and an augmentation return, so that a broken contract is reported where it is broken.

The first call of each function goes through a check, which then removes itself: later calls cost nothing.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.errors import UserError

Check = Callable[[nn.Module, Any, Any], str | None]


def check_method_once(method: nn.Module, name: str) -> None:
    """Check what `forward`, `embed` and `loss` of the method called `name` return at their first call.

    The call then raises UserError that names method, class, file and line if the contract is broken.
    """
    own = {"forward": _forward, "embed": _embed, "loss": _loss}
    for function, wrapper in own.items():
        method.__dict__[function] = MethodType(wrapper, method)
    method.__dict__["called"] = f"method {name}"


def check_augmentation_once(augmentation: nn.Module, name: str) -> None:
    """Check what the augmentation called `name` returns at its first call, as `check_method_once` does."""
    augmentation.__dict__["forward"] = MethodType(_views, augmentation)
    augmentation.__dict__["called"] = f"augmentation {name}"


# Functions of a module, because deepcopy binds those to the copy.


def _forward(self: nn.Module, batch: Any) -> Any:
    return _first(self, "forward", batch, _wrong_result)


def _embed(self: nn.Module, batch: Any) -> Any:
    return _first(self, "embed", batch, _wrong_embeddings)


def _loss(self: nn.Module, embeddings: Any) -> Any:
    return _first(self, "loss", embeddings, _wrong_result)


def _views(self: nn.Module, images: Any, *args: Any, **kwargs: Any) -> Any:
    return _first(self, "forward", images, _wrong_views, *args, **kwargs)


def _first(module: nn.Module, function: str, given: Any, wrong: Check, *args: Any, **kwargs: Any) -> Any:
    """Call a function of the module's class, check what it returns, and take the check off."""
    out = getattr(type(module), function)(module, given, *args, **kwargs)
    if problem := wrong(module, given, out):
        raise UserError(f"{module.called}: {_place(module, function)} must return {problem}")
    module.__dict__.pop(function, None)
    return out


def _place(module: nn.Module, function: str) -> str:
    code = inspect.unwrap(getattr(type(module), function)).__code__
    return f"{type(module).__name__}.{function} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def _wrong_result(method: nn.Module, given: Any, out: Any) -> str | None:
    if not isinstance(out, dict) or "loss" not in out:
        return f'a dict with the key "loss", but returns {_described(out)}'
    for name, value in out.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            return f"one number as {name!r}, in a tensor, but returns {_described(value)}"
    if torch.is_grad_enabled() and not out["loss"].requires_grad:
        return 'a "loss" with a graph, from which gradients can be computed, but returns one without'
    return None


def _wrong_embeddings(method: nn.Module, batch: Any, out: Any) -> str | None:
    if not isinstance(out, dict) or not out:
        return f"a dict of tensors, but returns {_described(out)}"
    images = len(batch.indices)
    for name, rows in out.items():
        if not isinstance(rows, Tensor) or rows.ndim == 0 or len(rows) != images:
            return f"one row of {name!r} for each of the {images} images, but returns {_described(rows)}"
    return None


def _wrong_views(augmentation: nn.Module, images: Any, out: Any) -> str | None:
    if not isinstance(out, list) or not out:
        return f"a list of tensors, one for each resolution, but returns {_described(out)}"
    for crops in out:
        whole = isinstance(crops, Tensor) and crops.ndim == 4 and crops.shape[1] == 3 and crops.is_floating_point()
        if not whole or len(crops) == 0 or len(crops) % len(images):
            return f"views as float tensors [V*{len(images)}, 3, h, w], but returns {_described(crops)}"
    return None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value)) or 'of nothing'}"
    return f"a {type(value).__name__}"
