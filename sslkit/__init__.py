"""sslkit: pre-train light vision backbones on your own unlabelled images, on one small GPU.

run = sslkit.run(method="byol", backbone="shufflenetv2", data="photos/", epochs=100)
backbone = sslkit.load(run.backbone_file)      # nn.Module: [N, 3, H, W] float -> [N, backbone.width]
"""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.backbones import Backbone, create_backbone
    from sslkit.backbones import load_backbone as load
    from sslkit.config.base import Config
    from sslkit.errors import UserError
    from sslkit.runs.run import Run

__all__ = ["Backbone", "Config", "Run", "UserError", "__version__", "create_backbone", "hookimpl", "load", "run"]

__version__ = "0.1.0"

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Backbone": "sslkit.backbones",
        "Config": "sslkit.config.base",
        "Run": "sslkit.runs.run",
        "UserError": "sslkit.errors",
        "create_backbone": "sslkit.backbones",
        "load": "sslkit.backbones:load_backbone",
    },
)


def run(**settings: Any) -> "Run":
    """Pre-train and return the finished Run: `sslkit run` as a function.

    Settings are those of the command line, nested or dotted: `epochs=5`, `optimizer={"lr": 0.1}`,
    `**{"method.temperature": 0.2}`. `quiet=True` prints nothing. Raises UserError naming every mistake.
    """
    from sslkit.runs.display import Display
    from sslkit.training.engine import run_settings

    display = Display(quiet=bool(settings.pop("quiet", False)))
    return run_settings({k: str(v) if hasattr(v, "__fspath__") else v for k, v in settings.items()}, display)
