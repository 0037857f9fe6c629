"""Data: from image files to batches on the device.

A source (`folder`, `cifar10`, `digits`, ...) lists images, `pack` writes them once to a .beton file, a `Store`
opens it, and a `Loader` streams shuffled uint8 batches from it.
"""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.data.images import ArrayImages, Images
    from sslkit.data.loaders.base import ImageBatch, Loader
    from sslkit.data.loaders.ffcv import ffcv_missing
    from sslkit.data.loaders.make import in_order, make_loader
    from sslkit.data.overview import survey
    from sslkit.data.packing.pack import pack
    from sslkit.data.packing.store import Store
    from sslkit.data.sources.base import Source
    from sslkit.data.sources.cifar import CIFAR10, CIFAR100
    from sslkit.data.sources.digits import Digits
    from sslkit.data.sources.folder import Folder
    from sslkit.data.sources.packed import Packed
    from sslkit.data.sources.shapes import Shapes
    from sslkit.data.sources.stl10 import STL10
    from sslkit.data.stores import Stores, open_stores, pack_source
    from sslkit.machine.cache import cache_dir

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "STL10",
    "ArrayImages",
    "Digits",
    "Folder",
    "ImageBatch",
    "Images",
    "Loader",
    "Packed",
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
    "survey",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ArrayImages": "sslkit.data.images",
        "CIFAR10": "sslkit.data.sources.cifar",
        "CIFAR100": "sslkit.data.sources.cifar",
        "Digits": "sslkit.data.sources.digits",
        "Folder": "sslkit.data.sources.folder",
        "Images": "sslkit.data.images",
        "Loader": "sslkit.data.loaders.base",
        "Packed": "sslkit.data.sources.packed",
        "ImageBatch": "sslkit.data.loaders.base",
        "STL10": "sslkit.data.sources.stl10",
        "Shapes": "sslkit.data.sources.shapes",
        "Source": "sslkit.data.sources.base",
        "Store": "sslkit.data.packing.store",
        "Stores": "sslkit.data.stores",
        "cache_dir": "sslkit.machine.cache",
        "ffcv_missing": "sslkit.data.loaders.ffcv",
        "in_order": "sslkit.data.loaders.make",
        "make_loader": "sslkit.data.loaders.make",
        "open_stores": "sslkit.data.stores",
        "pack": "sslkit.data.packing.pack",
        "pack_source": "sslkit.data.stores",
        "survey": "sslkit.data.overview",
    },
)


@hookimpl
def register_datasets(register: Any) -> None:
    register("digits", "sslkit.data.sources.digits:Digits")
    register("shapes", "sslkit.data.sources.shapes:Shapes")
    register("folder", "sslkit.data.sources.folder:Folder")
    register("beton", "sslkit.data.sources.packed:Packed")
    register("cifar10", "sslkit.data.sources.cifar:CIFAR10")
    register("cifar100", "sslkit.data.sources.cifar:CIFAR100")
    register("stl10", "sslkit.data.sources.stl10:STL10")
