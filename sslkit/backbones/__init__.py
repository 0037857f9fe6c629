"""Backbones: networks without classifier, [N, 3, H, W] -> [N, width]; their weights fit the plain model.

`zoo.py` holds the short names, timm: and torchvision:, `build.py` creates a backbone, `stems.py` adapts it to small
images, `files.py` saves and loads weights, `layers.py` gives the output of a layer by its name.
"""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.backbones.backbone import Backbone
    from sslkit.backbones.build import create_backbone
    from sslkit.backbones.files import load_backbone, save_backbone
    from sslkit.backbones.settings import takes
    from sslkit.backbones.weights import load_weights
    from sslkit.config.components import BackboneConfig

__all__ = ["Backbone", "BackboneConfig", "create_backbone", "load_backbone", "load_weights", "save_backbone", "takes"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Backbone": "sslkit.backbones.backbone",
        "BackboneConfig": "sslkit.config.components",
        "create_backbone": "sslkit.backbones.build",
        "load_backbone": "sslkit.backbones.files",
        "load_weights": "sslkit.backbones.weights",
        "save_backbone": "sslkit.backbones.files",
        "takes": "sslkit.backbones.settings",
    },
)


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
    register("vit", "sslkit.backbones.vit:vit")
    register("timm:", "sslkit.backbones.zoo:timm_model")
    register("torchvision:", "sslkit.backbones.zoo:torchvision_model")
    register("splitbrain:", "sslkit.backbones.splitnet:splitbrain")
