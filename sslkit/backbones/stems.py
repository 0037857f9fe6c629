"""The small and the medium stem: one rule, "drop the first two halvings of resolution, or the first", for any network.

At 32 px an ImageNet stem leaves most networks a single position. A forward pass with hooks finds the halvings.
A strided convolution gets stride 1 and keeps its weights (its block has a shortcut only if it had one), a pooling
layer becomes an identity, and the total stride goes from 32 to 8, or to 16 with the medium stem (SqueezeNet: from 16 to
4 or 8).

Two changes affect a shape, though never a key: a 7×7 stem convolution becomes 3×3 with fresh weights (SimCLR,
Chen et al. 2020, B.9), and vision transformers get patches of a quarter or half of the size (16 to 4 or 8).
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from sslkit.errors import UserError

DIVISORS = {"imagenet": 1, "medium": 2, "small": 4}
"""Factor by which a stem divides the total stride of the network as it comes."""


@dataclass
class Reduction:
    """A reduction of resolution: parallel branches (a shortcut) reduce in several modules at once."""

    factor: int
    modules: list[str] = field(default_factory=list)


def divide_stride(net: nn.Module, image_size: int, divisor: int, least: int = 0) -> bool:
    """Drop the first halvings of `net`, in place, keeping its keys; return True if it was changed.

    divisor: of the total stride, 2 for one halving and 4 for two. A network whose total stride is below `least` is left
    unchanged. Raises UserError if the halvings cannot be dropped.
    """
    if is_token_net(net):
        if net.patch_embed.patch_size[0] < least:
            return False
        _divide_patches(net, image_size, divisor)
        return True
    all_reductions = reductions(net, image_size)
    before = prod(r.factor for r in all_reductions)
    if before < least:
        return False
    _drop_halvings(net, all_reductions, divisor)
    if total_stride(net, image_size) * divisor != before:
        raise UserError("its resolution does not follow from its strides")
    return True


def _divide_patches(net: Any, image_size: int, divisor: int) -> None:
    patch = net.patch_embed.patch_size[0]
    if patch % divisor:
        raise UserError(f"its patches of {patch} px cannot be divided by {divisor}")
    set_tokens(net, image_size, patch // divisor)


def _drop_halvings(net: nn.Module, all_reductions: list[Reduction], divisor: int) -> None:
    remaining = divisor
    for reduction in all_reductions:
        if remaining == 1 or remaining % reduction.factor:
            break
        for name in reduction.modules:
            _keep_resolution(net, name)
        remaining //= reduction.factor
    if remaining > 1:
        raise UserError(f"its resolution does not start with halvings that divide it by {divisor}")


def total_stride(net: nn.Module, image_size: int) -> int:
    """Stride of the last feature map in pixels of the image, in one direction."""
    if is_token_net(net):
        count: int = net.patch_embed.patch_size[0]
        return count
    return prod(r.factor for r in reductions(net, image_size))


def reductions(net: nn.Module, image_size: int) -> list[Reduction]:
    """Find the reductions of resolution, in order, in one forward pass; global pooling is not counted."""
    found: dict[int, Reduction] = {}

    def note(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
            factor = _stride(module)
            if inputs[0].ndim == 4 and factor > 1:
                found.setdefault(inputs[0].shape[-1], Reduction(factor)).modules.append(name)

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in net.named_modules()
        if hasattr(module, "stride") and not list(module.children())
    ]
    try:
        dry_run(net, max(image_size, 32))
    finally:
        for handle in handles:
            handle.remove()
    return [found[size] for size in sorted(found, reverse=True)]


def dry_run(net: nn.Module, image_size: int) -> Any:
    """Return the output of `net` for one black image, in eval mode; changes no weight, statistic or random state."""
    modes = {module: module.training for module in net.modules()}
    parameter = next(net.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            return net.eval()(torch.zeros(1, 3, image_size, image_size, device=parameter.device))
    finally:
        for module, training in modes.items():
            module.training = training


def is_token_net(net: Any) -> TypeGuard[Any]:
    """Return True if `net` is a vision transformer of timm or similar, which starts with patches of a fixed size."""
    return callable(getattr(net, "set_input_size", None)) and hasattr(net, "patch_embed")


def set_tokens(net: Any, image_size: int, patch: int | None = None) -> None:
    """Set the image and patch size (pixels) of a vision transformer with random weights."""
    old = net.patch_embed
    if (image_size, image_size) == tuple(old.img_size) and patch in (None, old.patch_size[0]):
        return
    net.set_input_size(img_size=(image_size, image_size), patch_size=patch and (patch, patch))
    # timm interpolates the old weights, but interpolated noise is no proper initialisation.
    if patch is not None:
        net.patch_embed.proj.reset_parameters()
    if isinstance(getattr(net, "pos_embed", None), nn.Parameter):
        nn.init.trunc_normal_(net.pos_embed, std=0.02)


def _stride(module: Any) -> int:
    stride = module.stride
    return stride[0] if isinstance(stride, tuple | list) else int(stride or 1)


def _keep_resolution(net: nn.Module, name: str) -> None:
    module = net.get_submodule(name)
    if not isinstance(module, nn.Conv2d):
        net.set_submodule(name, nn.Identity())
    elif module.in_channels == 3 and module.kernel_size[0] >= 7 > module.stride[0]:
        net.set_submodule(name, _three_by_three(module))
    else:
        module.stride = (1, 1)
        # An even kernel adds a row and a column; without padding the later stages would lose one each.
        module.padding = tuple(d * (k // 2) for d, k in zip(module.dilation, module.kernel_size))


def _three_by_three(stem: nn.Conv2d) -> nn.Conv2d:
    conv = nn.Conv2d(3, stem.out_channels, 3, padding=1, bias=stem.bias is not None)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv.to(stem.weight.device, stem.weight.dtype)
