"""Backbones: networks without classifier, [N, 3, H, W] -> [N, width]; their weights fit the plain model.

`zoo.py` holds the short names, timm: and torchvision:, `build.py` makes one, `stems.py` fits it to small
images, `files.py` writes and reads weights.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sslkit.config import Config
from sslkit.hookspecs import hookimpl
from sslkit.lazy import lazy_names

if TYPE_CHECKING:
    from sslkit.backbones.build import create_backbone
    from sslkit.backbones.files import load_backbone, load_weights, save_backbone

__all__ = ["BackboneConfig", "create_backbone", "load_backbone", "load_weights", "save_backbone"]

__getattr__ = lazy_names(
    __name__,
    {
        "create_backbone": "sslkit.backbones.build",
        "load_backbone": "sslkit.backbones.files",
        "load_weights": "sslkit.backbones.files",
        "save_backbone": "sslkit.backbones.files",
    },
)


class BackboneConfig(Config):
    """What `backbone.<field>=` accepts, unless a backbone brings a `Config` of its own."""

    stem: Literal["auto", "imagenet", "small"] = "auto"
    """small drops the first two halvings, so that small images keep resolution; auto: small up to 64 px."""
    pretrained: Path | None = None
    """Weights to start from: a safetensors file of sslkit, timm or torchvision, minus its classifier."""

    def check(self) -> Iterable[str]:
        if self.pretrained is not None and not self.pretrained.expanduser().is_file():
            yield f"pretrained={self.pretrained} is not a file; give the path of a .safetensors file"


@hookimpl
def register_backbones(register: Any) -> None:
    for name in (
        "shufflenetv2",
        "squeezenet",
        "mobilenetv2",
        "mobilenetv3_small",
        "mobilenetv3_large",
        "efficientnet_lite0",
        "resnet18",
        "resnet50",
        "vit_tiny",
    ):
        register(name, f"sslkit.backbones.zoo:{name}")
    register("timm:", "sslkit.backbones.zoo:timm_model")
    register("torchvision:", "sslkit.backbones.zoo:torchvision_model")
