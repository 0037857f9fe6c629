"""Augmentations: uint8 images in, normalised float views out, on the device of the images.

`base.py` holds the contract, `multi_view.py` the base class of all built-in augmentations, `builtin.py` those,
`transforms.py` the settings and random parameters of each transform. The parameters drawn for a batch
(`parameters.py`) are applied by the plain operations of `ops.py`, the reference implementation, or on the CPU by the
kernels of `cpu_kernels.py`, which are several times faster.
"""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.augment.base import Augmentation
    from sslkit.augment.builtin import (
        BeasseAugmentation,
        BYOLAugmentation,
        DigitAugmentation,
        MoCoV2Augmentation,
        PlainAugmentation,
        SimCLRAugmentation,
        SmallAugmentation,
        WeakAugmentation,
    )
    from sslkit.augment.multi_view import MultiViewAugmentation
    from sslkit.augment.transforms import Blur, Crop, Flip, Grayscale, Jitter, Rotate, Solarize

__all__ = [
    "Augmentation",
    "BYOLAugmentation",
    "BeasseAugmentation",
    "Blur",
    "Crop",
    "DigitAugmentation",
    "Flip",
    "Grayscale",
    "Jitter",
    "MoCoV2Augmentation",
    "MultiViewAugmentation",
    "PlainAugmentation",
    "Rotate",
    "SimCLRAugmentation",
    "SmallAugmentation",
    "Solarize",
    "WeakAugmentation",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Augmentation": "sslkit.augment.base",
        "MultiViewAugmentation": "sslkit.augment.multi_view",
        "BeasseAugmentation": "sslkit.augment.builtin",
        "BYOLAugmentation": "sslkit.augment.builtin",
        "DigitAugmentation": "sslkit.augment.builtin",
        "MoCoV2Augmentation": "sslkit.augment.builtin",
        "PlainAugmentation": "sslkit.augment.builtin",
        "SimCLRAugmentation": "sslkit.augment.builtin",
        "SmallAugmentation": "sslkit.augment.builtin",
        "WeakAugmentation": "sslkit.augment.builtin",
        "Blur": "sslkit.augment.transforms",
        "Crop": "sslkit.augment.transforms",
        "Flip": "sslkit.augment.transforms",
        "Grayscale": "sslkit.augment.transforms",
        "Jitter": "sslkit.augment.transforms",
        "Rotate": "sslkit.augment.transforms",
        "Solarize": "sslkit.augment.transforms",
    },
)


@hookimpl
def register_augmentations(register: Any) -> None:
    register("simclr", "sslkit.augment.builtin:SimCLRAugmentation")
    register("byol", "sslkit.augment.builtin:BYOLAugmentation")
    register("mocov2", "sslkit.augment.builtin:MoCoV2Augmentation")
    register("small", "sslkit.augment.builtin:SmallAugmentation")
    register("beasse", "sslkit.augment.builtin:BeasseAugmentation")
    register("weak", "sslkit.augment.builtin:WeakAugmentation")
    register("digits", "sslkit.augment.builtin:DigitAugmentation")
    register("none", "sslkit.augment.builtin:PlainAugmentation")
