"""What can be set of any backbone, and how a factory says that it takes other settings."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from sslkit.config import Config

Factory = TypeVar("Factory", bound=Callable[..., Any])


class BackboneConfig(Config):
    """What `backbone.<field>=` accepts, unless a backbone brings a `Config` of its own."""

    stem: Literal["auto", "imagenet", "small"] = "auto"
    """small drops the first two halvings, so that small images keep resolution; auto: small up to 64 px."""
    pretrained: Path | None = None
    """Weights to start from: a safetensors file of sslkit, timm or torchvision, minus its classifier."""

    def check(self) -> Iterable[str]:
        if self.pretrained is not None and not self.pretrained.expanduser().is_file():
            yield f"pretrained={self.pretrained} is not a file; give the path of a .safetensors file"


def takes(config: type[Config]) -> Callable[[Factory], Factory]:
    """Decorator for a backbone's factory, a plain function, that has settings of its own: they become its `Config`."""

    def with_config(factory: Factory) -> Factory:
        vars(factory)["Config"] = config
        return factory

    return with_config
