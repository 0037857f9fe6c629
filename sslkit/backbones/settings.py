"""What can be set of any backbone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from sslkit.config import Config


class BackboneConfig(Config):
    """What `backbone.<field>=` accepts, unless a backbone brings a `Config` of its own."""

    stem: Literal["auto", "imagenet", "small"] = "auto"
    """small drops the first two halvings, so that small images keep resolution; auto: small up to 64 px."""
    pretrained: Path | None = None
    """Weights to start from: a safetensors file of sslkit, timm or torchvision, minus its classifier."""

    def check(self) -> Iterable[str]:
        if self.pretrained is not None and not self.pretrained.expanduser().is_file():
            yield f"pretrained={self.pretrained} is not a file; give the path of a .safetensors file"
