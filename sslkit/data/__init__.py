"""Images, from where they lie to batches on the device.

A source (`folder`, `cifar10`, `digits`, ...) lists images, `pack` writes them once to a .beton, a `Store`
opens it, and a `Loader` streams shuffled uint8 batches from it.
"""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.lazy import lazy_names

if TYPE_CHECKING:
    from sslkit.data.cifar import CIFAR10, CIFAR100
    from sslkit.data.digits import Digits
    from sslkit.data.folder import Folder
    from sslkit.data.loaders import Loader, RawBatch, ffcv_missing, in_order, make_loader
    from sslkit.data.packed import Packed
    from sslkit.data.packing import pack
    from sslkit.data.shapes import Shapes
    from sslkit.data.source import ArrayImages, Images, Source, cache_dir
    from sslkit.data.stl10 import STL10
    from sslkit.data.store import Store
    from sslkit.data.stores import Stores, open_stores, pack_source

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "ArrayImages",
    "Digits",
    "Folder",
    "Images",
    "Loader",
    "Packed",
    "RawBatch",
    "Shapes",
    "Source",
    "Store",
    "Stores",
    "cache_dir",
    "ffcv_missing",
    "in_order",
    "make_loader",
    "open_stores",
    "pack",
    "pack_source",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ArrayImages": "sslkit.data.source",
        "CIFAR10": "sslkit.data.cifar",
        "CIFAR100": "sslkit.data.cifar",
        "Digits": "sslkit.data.digits",
        "Folder": "sslkit.data.folder",
        "Images": "sslkit.data.source",
        "Loader": "sslkit.data.loaders",
        "Packed": "sslkit.data.packed",
        "RawBatch": "sslkit.data.loaders",
        "STL10": "sslkit.data.stl10",
        "Shapes": "sslkit.data.shapes",
        "Source": "sslkit.data.source",
        "Store": "sslkit.data.store",
        "Stores": "sslkit.data.stores",
        "cache_dir": "sslkit.data.source",
        "ffcv_missing": "sslkit.data.loaders",
        "in_order": "sslkit.data.loaders",
        "make_loader": "sslkit.data.loaders",
        "open_stores": "sslkit.data.stores",
        "pack": "sslkit.data.packing",
        "pack_source": "sslkit.data.stores",
    },
)


@hookimpl
def register_datasets(register: Any) -> None:
    register("digits", "sslkit.data.digits:Digits")
    register("shapes", "sslkit.data.shapes:Shapes")
    register("folder", "sslkit.data.folder:Folder")
    register("beton", "sslkit.data.packed:Packed")
    register("cifar10", "sslkit.data.cifar:CIFAR10")
    register("cifar100", "sslkit.data.cifar:CIFAR100")
    register("stl10", "sslkit.data.stl10:STL10")
