"""Weights on disk: safetensors with the plain model's own keys, and a header that describes them."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import nn

from sslkit import plugins
from sslkit.backbones.backbone import Backbone, width_of
from sslkit.backbones.weights import fill, not_safetensors, read_weights
from sslkit.config.base import Config
from sslkit.config.components import config_class, without_weights
from sslkit.errors import UserError, in_one_line
from sslkit.machine.atomic import replacing
from sslkit.machine.files import UNREADABLE
from sslkit.machine.tensors import read_header as read_text
from sslkit.machine.tensors import write_tensors

FORMAT = "sslkit"
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Header(Config):
    """Description of a backbone in its file; each value is text or JSON in the file's metadata."""

    name: str
    """Registered name of the backbone."""
    width: int = Field(ge=1)
    """Width of the features."""
    stem: Literal["imagenet", "medium", "small"]
    """The stem it was built with."""
    image_size: int = Field(ge=1, le=2**14)
    """Image size it was built for, in pixels."""
    mean: tuple[Finite, Finite, Finite]
    """Mean to subtract from each channel of images in 0..1."""
    std: tuple[Positive, Positive, Positive]
    """Standard deviation to divide each channel by."""
    epoch: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Epochs of training that the weights have seen; None if unknown."""
    step: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps that the weights have seen; None if unknown."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of the run; `backbone` holds the backbone's own options."""


def save_backbone(net: nn.Module, path: str | Path, **header: Any) -> None:
    """Write a backbone atomically; `net` has `width` and `stem_kind`, as `create_backbone` sets them.

    `header` gives the other fields of `Header`: name, image_size, mean, std, epoch, step, config.
    """
    description = Header.model_validate({"width": net.width, "stem": net.stem_kind, **header})
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in net.state_dict().items()
    }
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in description.model_dump(mode="json").items()}
    with replacing(Path(path)) as temporary:
        write_tensors(temporary, tensors, {"format": FORMAT, **metadata})


def load_backbone(path: str | Path) -> Backbone:
    """Load the backbone of a file that `save_backbone` wrote, in eval mode, on the CPU.

    The global random state is left unchanged. Raises UserError for a foreign or damaged file.
    """
    from sslkit.backbones.build import create_backbone

    path = Path(path).expanduser()
    tensors, metadata = read_weights(path)
    header = _parse_header(path, metadata)
    with torch.random.fork_rng(devices=[]):
        net = create_backbone(header.name, header.image_size, **_options(header))
    fill(net, tensors, path)
    if width_of(net) != header.width:
        raise UserError(
            f"{path} has a damaged header (width {header.width}, but {header.name} gives {width_of(net)}); "
            "fetch or write it again"
        )
    description = header.model_dump(include={"name", "width", "stem", "image_size", "mean", "std"})
    return Backbone(net, **description).eval()


def read_header(path: str | Path) -> Header | None:
    """Return the header of a file that `save_backbone` wrote, or None if another program wrote the file.

    The tensors are not read. Raises UserError for a file that is damaged or not safetensors.
    """
    path = Path(path).expanduser()
    try:
        metadata = read_text(path)
    except UNREADABLE as error:
        raise UserError(not_safetensors(path, error)) from error
    return _parse_header(path, metadata) if metadata.get("format") == FORMAT else None


def _parse_header(path: Path, metadata: dict[str, str]) -> Header:
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} was not written by sslkit, so it does not name its network; "
            f'build one with create_backbone(name, pretrained="{path}")'
        )
    try:
        text = {"name", "stem"}
        values = {k: v if k in text else json.loads(v) for k, v in metadata.items() if k in Header.model_fields}
        return Header.model_validate(values)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has a damaged header ({_problems(error)}); fetch or write it again") from error


def _problems(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return in_one_line(error)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())


def _options(header: Header) -> dict[str, Any]:
    """Return the backbone's own options as the run had them, with the decided stem and without pretrained weights."""
    chosen = header.config.get("backbone")
    options = {k: v for k, v in chosen.items() if k != "name"} if isinstance(chosen, dict) else {}
    factory = plugins.find("backbones", header.name)
    stem = {"stem": header.stem} if "stem" in config_class(factory).model_fields else {}
    return options | stem | without_weights(factory)
