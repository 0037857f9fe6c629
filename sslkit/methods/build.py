"""Build the method of a run on its backbone."""

from sslkit import plugins
from sslkit.backbones import create_backbone
from sslkit.config.run import RunConfig
from sslkit.data import Stores
from sslkit.errors import UserError
from sslkit.methods.base import Method, RunInfo


def build_method(config: RunConfig, stores: Stores) -> Method:
    """Build the method of a run on its backbone. Raises UserError if it needs labels and the data has none."""
    method_class: type[Method] = plugins.find("methods", config.method.name)
    if not (isinstance(method_class, type) and issubclass(method_class, Method)):
        raise UserError(
            f"method {config.method.name} is {method_class!r}, which is no subclass of sslkit.methods.Method"
        )
    if method_class.uses_labels and stores.pretrain.labels is None:
        raise UserError(f"method {config.method.name} needs labels, and {config.data.name} has none")
    backbone = create_backbone(method_class.trained_backbone(config.backbone), image_size=stores.image_size)
    info = RunInfo(
        images=len(stores.pretrain),
        classes=len(stores.pretrain.classes),
        image_size=stores.image_size,
        mean=stores.mean,
        std=stores.std,
    )
    return method_class(config.method.options, backbone, info)
