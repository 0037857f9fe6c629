"""Memory of a network's activations, counted on torch's meta device: nothing is computed, no memory is taken."""

from typing import Any

import torch
from torch import Tensor, nn

from sslkit.backbones.build import create_backbone
from sslkit.config.base import Choice
from sslkit.errors import UserError


def activation_bytes(backbone: Choice, image_size: int) -> int | None:
    """Return the bytes of all layers' outputs for one float32 image, which training keeps for the backward pass.

    image_size: in pixels. Returns None for a network that cannot be built or called without data.
    """
    known = {"pretrained": None} if hasattr(backbone.options, "pretrained") else {}
    choice = backbone.model_copy(update={"options": backbone.options.model_copy(update=known)})
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return 4 * _outputs(create_backbone(choice, image_size), image_size)
    except (UserError, RuntimeError, ValueError, AssertionError):
        return None


def _outputs(net: nn.Module, image_size: int) -> int:
    """Return the number of output elements of all layers, for one of two images: batch norm needs two."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else 0)

    for module in net.modules():
        if not any(module.children()):
            module.register_forward_hook(note)
    net(torch.zeros(2, 3, image_size, image_size))
    return sum(sizes) // 2
