"""Multi-crop: two full-size views and several cheap small views of small parts of the image."""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sslkit.augment import Augmentation, Blur, Crop, Flip, Grayscale, Jitter, MultiViewAugmentation, Solarize
from sslkit.augment.base import Triple


class MultiCrop(Augmentation):
    """Two full-size views and six small ones; crops and flips alone (Caron et al. 2020, 3.2).

    Multi-crop, arXiv:2006.09882. The small views share flip, rotate, jitter, grayscale and extra with the
    full-size ones, have a crop and blur of their own, and are never solarized.
    """

    class Config(MultiViewAugmentation.Config):
        crop: Crop = Crop(scale=(0.14, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        local_views: int = Field(default=6, ge=0)
        """Number of small views of each image; 0: none."""
        local_size: int | None = Field(default=None, ge=16)
        """Height and width of the small views in pixels; null: 96/224 of a full-size view's, a multiple of 8."""
        local_crop: Crop = Crop(scale=(0.05, 0.14), ratio=(3 / 4, 4 / 3))
        """Random crop of the small views: scale, ratio."""
        local_blur: Blur = Blur()
        """Gaussian blur of the small views: p, sigma, kernel."""

        @model_validator(mode="after")
        def _one_probability_for_both_sizes(self) -> Self:
            listed = [
                name for name in ("flip", "rotate", "jitter", "grayscale") if type(getattr(self, name).p) is tuple
            ]
            if self.local_views and listed:
                raise ValueError(f"{listed[0]}.p also holds for the small views; give one number, or local_views=0")
            return self

    config: Config

    def __init__(self, config: Config, image_size: int, mean: Triple, std: Triple) -> None:
        super().__init__(config, image_size, mean, std)
        self.n_views = config.views
        self.large = MultiViewAugmentation(config, image_size, mean, std)
        local_size = config.local_size or local_size_for(image_size)
        self.small = MultiViewAugmentation(_local_config(config), local_size, mean, std) if config.local_views else None

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Return full-size views [V*B, 3, S, S], then small views [L*B, 3, s, s] unless L is 0.

        See `Augmentation.forward`.
        """
        large = self.large(images, generator)
        tensors: list[Tensor] = large + self.small(images, generator) if self.small else large
        return tensors


class SwAVCrops(MultiCrop):
    """SwAV's multi-crop: SimCLR's colour distortion on all views (Caron et al. 2020, A.1 and reference code)."""

    class Config(MultiCrop.Config):
        jitter: Jitter = Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=0.5, sigma=(0.1, 2.0), kernel=0.1)
        local_blur: Blur = Blur(p=0.5, sigma=(0.1, 2.0), kernel=0.1)


class DINOCrops(MultiCrop):
    """DINO's multi-crop: BYOL's colour distortion, larger crops than SwAV's (Caron et al. 2021, A and code)."""

    class Config(MultiCrop.Config):
        crop: Crop = Crop(scale=(0.4, 1.0), ratio=(3 / 4, 4 / 3))
        jitter: Jitter = Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=(1.0, 0.1), sigma=(0.1, 2.0), kernel=0.1)
        solarize: Solarize = Solarize(p=(0.0, 0.2), threshold=0.5)
        local_crop: Crop = Crop(scale=(0.05, 0.4), ratio=(3 / 4, 4 / 3))
        local_blur: Blur = Blur(p=0.5, sigma=(0.1, 2.0), kernel=0.1)


def local_size_for(image_size: int) -> int:
    """Return 96/224 of `image_size` in pixels, as a multiple of 8, at least 16: 96 at 224, 40 at 96, 16 at 32."""
    return max(16, 8 * round(image_size * 96 / 224 / 8))


def _local_config(config: MultiCrop.Config) -> MultiViewAugmentation.Config:
    return MultiViewAugmentation.Config(
        views=config.local_views,
        crop=config.local_crop,
        blur=config.local_blur,
        flip=config.flip,
        rotate=config.rotate,
        jitter=config.jitter,
        grayscale=config.grayscale,
        extra=config.extra,
    )
