"""The contract of a backbone."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.backbones import create_backbone
from sslkit.config.components import config_class
from sslkit.testing.contract import expect, seeded
from sslkit.testing.modules import check_gradients, restore


def check_backbone(backbone: str | Callable[..., nn.Module], image_size: int = 32, **options: Any) -> None:
    """Check a backbone, given by registered name or factory: features, gradients and weights."""
    with seeded(0):
        net, twin = (_make_backbone(backbone, image_size, options) for _ in range(2))
        images = torch.randn(2, 3, image_size, image_size)
        expect(net.training, "a factory must return the network in training mode")
        _check_features(net, images)
        _check_gradients_of(net, images)
        restore(net, twin)
        same = torch.equal(net.eval()(images), twin.eval()(images))
        expect(same, "a backbone restored from its state_dict must give the same features")


def _make_backbone(backbone: Any, image_size: int, options: dict[str, Any]) -> nn.Module:
    if isinstance(backbone, str):
        return create_backbone(backbone, image_size, **options)
    config = config_class(backbone).model_validate(options)
    sized = "image_size" in inspect.signature(backbone).parameters
    module: nn.Module = backbone(config, image_size=image_size) if sized else backbone(config)
    return module


@torch.no_grad()
def _check_features(net: nn.Module, images: Tensor) -> None:
    net.eval()
    features = net(images)
    shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
    expect(
        isinstance(features, Tensor) and features.ndim == 2 and len(features) == len(images),
        f"a backbone must turn {len(images)} images into features [{len(images)}, width], not {shape}",
    )
    width = getattr(net, "width", features.shape[1])
    expect(width == features.shape[1], f"width says {width}, but the features have {features.shape[1]} columns")
    expect(bool(features.isfinite().all()), "features must be finite")
    expect(
        torch.allclose(features[:1], net(images[:1]), rtol=1e-3, atol=1e-4),
        "in eval mode the features of an image must not depend on the others of its batch",
    )
    net.train()


def _check_gradients_of(net: nn.Module, images: Tensor) -> None:
    features = net(images)
    (features * torch.randn_like(features)).sum().backward()
    check_gradients(net)
