"""Settings of a component: its nested `Config`, or for a plain backbone factory the common one defined here."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from sslkit.config.base import Config


class BackboneConfig(Config):
    """Settings `backbone.<field>=` of a backbone that does not define a `Config` of its own."""

    stem: Literal["auto", "imagenet", "medium", "small"] = "auto"
    """First layers: small omits the first two downsamplings, so that small images keep resolution, medium the first;
    auto: small up to 64 px, else imagenet."""
    pretrained: Path | None = None
    """Initial weights: a safetensors file of sslkit, timm or torchvision, whose classifier is ignored."""

    prefix: str | None = None
    """What the names of the backbone's tensors begin with in that file, such as module. or backbone.; others are left
    out; null: nothing."""

    def check(self) -> Iterable[str]:
        if self.pretrained is not None and not self.pretrained.is_file():
            yield f"pretrained={self.pretrained} is not a file; give the path of a .safetensors file"
        if self.prefix is not None and self.pretrained is None:
            yield "prefix is that of names in a file; give the file with backbone.pretrained="


def config_class(component: Any) -> type[Config]:
    """Return the settings class of a component: its nested `Config`, or `BackboneConfig` for a plain factory."""
    return getattr(getattr(component, "func", component), "Config", BackboneConfig)


def without_weights(factory: Any) -> dict[str, None]:
    """Return the options with which a backbone factory reads no weights from a file."""
    return dict.fromkeys({"pretrained", "prefix"} & config_class(factory).model_fields.keys())
