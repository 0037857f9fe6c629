"""Every registered method at a size that tests can afford, and networks without batch norm to compare exactly."""

from typing import Any

import torch
from torch import nn

from sslkit import plugins
from sslkit.config.base import Choice
from sslkit.methods import Method, RunInfo

OPTIONS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 32, "dim": 16},
    "byol": {"hidden": 32, "dim": 16},
    "mocov2": {"hidden": 32, "dim": 16, "queue": 20},
    "pirl": {"negatives": 12},
    "jigsaw": {"permutations": 10, "dim": 16, "hidden": 32},
    "barlowtwins": {"hidden": 32, "dim": 16},
    "vicreg": {"hidden": 32, "dim": 16},
    "simsiam": {"hidden": 32, "dim": 32},
    "nnclr": {"hidden": 32, "dim": 16, "queue": 20},
    "swav": {"hidden": 32, "dim": 16, "prototypes": 12},
    "dino": {"hidden": 32, "bottleneck": 16, "prototypes": 24},
    "empssl": {"hidden": 32, "dim": 16},
    "lejepa": {"hidden": 32, "dim": 16, "directions": 20},
    "dcl": {"hidden": 32, "dim": 16},
    "dclw": {"hidden": 32, "dim": 16},
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
}
"""Options that keep heads, queues and prototypes small."""

NEEDS = {"mae": "vit_tiny"}
"""Methods that take one kind of backbone only."""

FEW_CROPS: dict[str, dict[str, Any]] = {
    **{name: {"name": name, "local_views": 2} for name in ("swav", "dino")},
    "empssl": {"name": "empssl", "views": 3},
}
"""Augmentations with fewer crops than their methods' own."""


class PlainBackbone(nn.Sequential):
    """Convolutions without batch norm, [N, 3, H, W] -> [N, 16]."""

    width = 16

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, self.width, 3, stride=2, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def make(name: str, backbone: nn.Module, info: RunInfo) -> Method:
    """The method at its small size, on this backbone."""
    method_class = plugins.find("methods", name)
    return method_class(method_class.Config(**OPTIONS.get(name, {})), backbone, info)


def without_batch_norm(module: nn.Module) -> nn.Module:
    """Every batch norm becomes the identity, in place: it alone sees more than one image at a time."""
    names = [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for name in names:
        module.set_submodule(name, nn.Identity())
    return module


def backbone_for(name: str, image_size: int = 32) -> nn.Module:
    """A small backbone without batch norm that the method can train."""
    from sslkit.backbones import create_backbone

    wanted = plugins.find("methods", name).trained_backbone(Choice(name=NEEDS.get(name, "plain")))
    if wanted.name == "plain":
        return PlainBackbone()
    return without_batch_norm(create_backbone(wanted.name.replace("plain", "vit_tiny"), image_size))


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())))
