"""Create a backbone: find its factory, adapt the stem to the images, measure the width, load weights."""

import inspect
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from sslkit import plugins
from sslkit.backbones import stems
from sslkit.backbones.weights import load_weights
from sslkit.config.base import Choice, Config
from sslkit.config.components import config_class
from sslkit.errors import UserError

SMALL = 64
"""Largest image size, in pixels, for which stem=auto means the small stem."""


def create_backbone(backbone: str | Choice, image_size: int = 224, **options: Any) -> nn.Module:
    """Create a backbone by its name, in training mode: [N, 3, image_size, image_size] float -> [N, width].

    `options` are those of `backbone.<option>=`: stem, pretrained. The module carries `width` (int, measured)
    and `stem_kind` ("imagenet", "medium" or "small", the decision; `stem` itself is often a submodule's name).
    Raises UserError for an unknown name or option, for a network that does not accept images of that size, and for
    weights that do not fit.
    """
    if isinstance(backbone, str):
        backbone = Choice(name=backbone)
    name = backbone.name
    factory = plugins.find("backbones", name)
    config = _settings(name, factory, backbone.options.model_dump(exclude_unset=True) | options)
    net = _call(name, factory, config, image_size)
    # A compound of backbones comes with its stems adapted.
    if not hasattr(net, "stem_kind"):
        net.stem_kind = _fit_stem(net, name, getattr(config, "stem", "imagenet"), image_size)
    net.width = _measure_width(net, name, image_size)
    if pretrained := getattr(config, "pretrained", None):
        load_weights(net, pretrained, getattr(config, "prefix", None))
    module: nn.Module = net
    return module


def _settings(name: str, factory: Any, options: dict[str, Any]) -> Config:
    cls = config_class(factory)
    try:
        config = cls.model_validate(options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
        raise UserError(f"backbone {name}: {wrong}; it takes {', '.join(cls.model_fields) or 'no options'}") from error
    if mistakes := list(config.check()):
        raise UserError(f"backbone {name}: {'; '.join(mistakes)}")
    return config


def _call(name: str, factory: Callable[..., Any], config: Config, image_size: int) -> Any:
    takes_size = "image_size" in inspect.signature(factory).parameters
    net = factory(config, image_size=image_size) if takes_size else factory(config)
    if not isinstance(net, nn.Module):
        raise UserError(f"backbone {name}: its factory must return a torch.nn.Module, not a {type(net).__name__}")
    return net


def _fit_stem(net: nn.Module, name: str, stem: str, image_size: int) -> str:
    # A network with a total stride below 16 was designed for small images, so auto leaves it unchanged.
    least = 16 if stem == "auto" else 0
    if stem == "auto":
        stem = "small" if image_size <= SMALL else "imagenet"
    if stem == "imagenet":
        return stem
    try:
        changed = stems.divide_stride(net, image_size, stems.DIVISORS[stem], least)
    except (UserError, RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"backbone {name} cannot have the {stem} stem ({_first_line(error)}); use backbone.stem=imagenet"
        ) from error
    return stem if changed else "imagenet"


def _measure_width(net: nn.Module, name: str, image_size: int) -> int:
    """Measure the width in a forward pass, because what networks declare about themselves is not always right."""
    try:
        out = stems.dry_run(net, image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"backbone {name} cannot take images of {image_size} px ({_first_line(error)}); "
            f"use another data.image_size or backbone"
        ) from error
    if not isinstance(out, Tensor) or out.ndim != 2:
        got = f"a tensor of shape {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise UserError(
            f"backbone {name} must turn images [N, 3, H, W] into features [N, width], but gives {got} "
            f"for N=1; pool and flatten inside it, or choose another"
        )
    return out.shape[1]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0]
