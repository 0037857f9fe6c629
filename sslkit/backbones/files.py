"""Weights on disk: safetensors with the plain model's own keys, and a header that describes them."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import nn

from sslkit import plugins
from sslkit.backbones.backbone import Backbone, Triple
from sslkit.backbones.weights import fill, read_tensors
from sslkit.config.base import Config
from sslkit.config.components import config_class
from sslkit.errors import UserError
from sslkit.machine.atomic import replacing

FORMAT = "sslkit"


class Header(Config):
    """Description of a backbone in its file; each value is text or JSON in the file's metadata."""

    name: str
    """Registered name of the backbone."""
    width: int
    """Width of the features."""
    stem: Literal["imagenet", "medium", "small"]
    """The stem it was built with."""
    image_size: int
    """Image size it was built for, in pixels."""
    mean: Triple
    """Mean to subtract from each channel of images in 0..1."""
    std: Triple
    """Standard deviation to divide each channel by."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of the run; `backbone` holds the backbone's own options."""


def save_backbone(net: nn.Module, path: str | Path, **header: Any) -> None:
    """Write a backbone atomically; `net` has `width` and `stem_kind`, as `create_backbone` sets them.

    `header` gives the other fields of `Header`: name, image_size, mean, std, config.
    """
    description = Header.model_validate({"width": net.width, "stem": net.stem_kind, **header})
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in net.state_dict().items()
    }
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in description.model_dump(mode="json").items()}
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, **metadata})


def load_backbone(path: str | Path) -> Backbone:
    """Load the backbone of a file that `save_backbone` wrote, in eval mode, on the CPU.

    The global random state is left unchanged. Raises UserError for a foreign or damaged file.
    """
    from sslkit.backbones.build import create_backbone

    path = Path(path).expanduser()
    tensors, metadata = read_tensors(path)
    header = _parse_header(path, metadata)
    with torch.random.fork_rng(devices=[]):
        net = create_backbone(header.name, header.image_size, **_options(header))
    fill(net, tensors, path)
    description = header.model_dump(include={"name", "width", "stem", "image_size", "mean", "std"})
    return Backbone(net, **description).eval()


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
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} has a damaged header ({reason}); fetch or write it again") from error


def _options(header: Header) -> dict[str, Any]:
    """Return the backbone's own options as the run had them, with the decided stem and without pretrained weights."""
    chosen = header.config.get("backbone")
    options = {k: v for k, v in chosen.items() if k != "name"} if isinstance(chosen, dict) else {}
    settled = {"stem": header.stem, "pretrained": None}
    fields = config_class(plugins.find("backbones", header.name)).model_fields
    return options | {k: v for k, v in settled.items() if k in fields}
