"""The settings of a component: its nested `Config`, or for a plain backbone factory the one here."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from sslkit.config.base import Config


class BackboneConfig(Config):
    """What `backbone.<field>=` accepts, unless a backbone brings a `Config` of its own."""

    stem: Literal["auto", "imagenet", "small"] = "auto"
    """small drops the first two halvings, so that small images keep resolution; auto: small up to 64 px."""
    pretrained: Path | None = None
    """Weights to start from: a safetensors file of sslkit, timm or torchvision, minus its classifier."""

    def check(self) -> Iterable[str]:
        if self.pretrained is not None and not self.pretrained.expanduser().is_file():
            yield f"pretrained={self.pretrained} is not a file; give the path of a .safetensors file"


def config_class(component: Any) -> type[Config]:
    """The settings a component takes: its nested `Config`, or for a plain backbone factory the common one."""
    return getattr(getattr(component, "func", component), "Config", BackboneConfig)
