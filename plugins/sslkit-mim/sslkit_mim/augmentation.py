"""The augmentation of MAE."""

from pydantic import Field

from sslkit.augment import Crop, Flip, MultiViewAugmentation


class MAEAugmentation(MultiViewAugmentation):
    """MAE's single view: a large crop, flipped at random, colours unchanged (He et al. 2022, Table 8)."""

    class Config(MultiViewAugmentation.Config):
        views: int = Field(default=1, ge=1)
        crop: Crop = Crop(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
