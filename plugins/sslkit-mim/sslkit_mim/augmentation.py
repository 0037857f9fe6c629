"""The view that MAE learns from."""

from pydantic import Field

from sslkit.augment import Crop, Flip, MultiViewAugmentation


class MAEAugmentation(MultiViewAugmentation):
    """MAE's view: one large crop, mirrored at random; the colours stay (He et al. 2022, Table 8)."""

    class Config(MultiViewAugmentation.Config):
        """What `augment.<field>=` accepts."""

        views: int = Field(default=1, ge=1)
        crop: Crop = Crop(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
