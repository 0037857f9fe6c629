"""Self-supervised methods, one file each; `base.py` holds the contract they share."""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.lazy import lazy_names

if TYPE_CHECKING:
    from sslkit.methods.base import Batch, Method, RunInfo
    from sslkit.methods.byol import BYOL
    from sslkit.methods.simclr import SimCLR

__all__ = ["BYOL", "Batch", "Method", "RunInfo", "SimCLR"]

__getattr__ = lazy_names(
    __name__,
    {
        "Batch": "sslkit.methods.base",
        "Method": "sslkit.methods.base",
        "RunInfo": "sslkit.methods.base",
        "BYOL": "sslkit.methods.byol",
        "SimCLR": "sslkit.methods.simclr",
    },
)


@hookimpl
def register_methods(register: Any) -> None:
    register("simclr", "sslkit.methods.simclr:SimCLR")
    register("byol", "sslkit.methods.byol:BYOL")
