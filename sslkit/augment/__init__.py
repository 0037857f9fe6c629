"""View recipes: uint8 images in, normalised float views out, on the device of the images.

`base.py` holds the contract, `views.py` the recipe that all built-in ones are made of, `recipes.py` those,
`steps.py` a step's settings and random parameters. What was drawn for a batch, `parameters.py`, is applied by the
plain operations of `ops.py`, the reference, or on the CPU by the kernels of `cpu.py`, several times faster.
"""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.augment.base import Recipe
    from sslkit.augment.recipes import (
        BeasseViews,
        BYOLViews,
        DigitViews,
        MoCoV2Views,
        PlainViews,
        SimCLRViews,
        SmallViews,
        WeakViews,
    )
    from sslkit.augment.steps import Blur, Crop, Flip, Grayscale, Jitter, Rotate, Solarize
    from sslkit.augment.views import Views

__all__ = [
    "BYOLViews",
    "BeasseViews",
    "Blur",
    "Crop",
    "DigitViews",
    "Flip",
    "Grayscale",
    "Jitter",
    "MoCoV2Views",
    "PlainViews",
    "Recipe",
    "Rotate",
    "SimCLRViews",
    "SmallViews",
    "Solarize",
    "Views",
    "WeakViews",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Recipe": "sslkit.augment.base",
        "Views": "sslkit.augment.views",
        "BeasseViews": "sslkit.augment.recipes",
        "BYOLViews": "sslkit.augment.recipes",
        "DigitViews": "sslkit.augment.recipes",
        "MoCoV2Views": "sslkit.augment.recipes",
        "PlainViews": "sslkit.augment.recipes",
        "SimCLRViews": "sslkit.augment.recipes",
        "SmallViews": "sslkit.augment.recipes",
        "WeakViews": "sslkit.augment.recipes",
        "Blur": "sslkit.augment.steps",
        "Crop": "sslkit.augment.steps",
        "Flip": "sslkit.augment.steps",
        "Grayscale": "sslkit.augment.steps",
        "Jitter": "sslkit.augment.steps",
        "Rotate": "sslkit.augment.steps",
        "Solarize": "sslkit.augment.steps",
    },
)


@hookimpl
def register_augmentations(register: Any) -> None:
    register("simclr", "sslkit.augment.recipes:SimCLRViews")
    register("byol", "sslkit.augment.recipes:BYOLViews")
    register("mocov2", "sslkit.augment.recipes:MoCoV2Views")
    register("small", "sslkit.augment.recipes:SmallViews")
    register("beasse", "sslkit.augment.recipes:BeasseViews")
    register("weak", "sslkit.augment.recipes:WeakViews")
    register("digits", "sslkit.augment.recipes:DigitViews")
    register("none", "sslkit.augment.recipes:PlainViews")
