"""Self-supervised methods, one file each; `base.py` holds the contract they share."""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.config.task import Fitted, Task
    from sslkit.methods.base import Batch, Method, RunInfo
    from sslkit.methods.byol import BYOL
    from sslkit.methods.jigsaw import Jigsaw
    from sslkit.methods.mocov2 import MoCoV2
    from sslkit.methods.pirl import PIRL
    from sslkit.methods.random_init import RandomInit
    from sslkit.methods.rotnet import RotNet
    from sslkit.methods.simclr import SimCLR
    from sslkit.methods.splitbrain import SplitBrain
    from sslkit.methods.supervised import Supervised

__all__ = [
    "BYOL",
    "PIRL",
    "Batch",
    "Fitted",
    "Jigsaw",
    "Method",
    "MoCoV2",
    "RandomInit",
    "RotNet",
    "RunInfo",
    "SimCLR",
    "SplitBrain",
    "Supervised",
    "Task",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Batch": "sslkit.methods.base",
        "Fitted": "sslkit.config.task",
        "Method": "sslkit.methods.base",
        "RunInfo": "sslkit.methods.base",
        "Task": "sslkit.config.task",
        "BYOL": "sslkit.methods.byol",
        "Jigsaw": "sslkit.methods.jigsaw",
        "MoCoV2": "sslkit.methods.mocov2",
        "PIRL": "sslkit.methods.pirl",
        "RandomInit": "sslkit.methods.random_init",
        "RotNet": "sslkit.methods.rotnet",
        "SimCLR": "sslkit.methods.simclr",
        "SplitBrain": "sslkit.methods.splitbrain",
        "Supervised": "sslkit.methods.supervised",
    },
)


@hookimpl
def register_methods(register: Any) -> None:
    register("simclr", "sslkit.methods.simclr:SimCLR")
    register("mocov2", "sslkit.methods.mocov2:MoCoV2")
    register("byol", "sslkit.methods.byol:BYOL")
    register("rotnet", "sslkit.methods.rotnet:RotNet")
    register("splitbrain", "sslkit.methods.splitbrain:SplitBrain")
    register("pirl", "sslkit.methods.pirl:PIRL")
    register("jigsaw", "sslkit.methods.jigsaw:Jigsaw")
    register("supervised", "sslkit.methods.supervised:Supervised")
    register("random", "sslkit.methods.random_init:RandomInit")
