"""The built-in augmentations: the papers' settings, as defaults of `MultiViewAugmentation`."""

from pydantic import Field

from sslkit.augment.multi_view import MultiViewAugmentation
from sslkit.augment.transforms import Blur, Crop, Flip, Grayscale, Jitter, Probability, Rotate, Solarize


class SimCLRAugmentation(MultiViewAugmentation):
    """SimCLR's augmentation: strong colour distortion, blur on half of the views (Chen et al. 2020, Appendix A)."""

    class Config(MultiViewAugmentation.Config):
        crop: Crop = Crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=0.5, sigma=(0.1, 2.0), kernel=0.1)


class BYOLAugmentation(MultiViewAugmentation):
    """BYOL's asymmetric augmentation: one view always blurred, one sometimes solarized (Grill et al. 2020, Table 6)."""

    class Config(MultiViewAugmentation.Config):
        crop: Crop = Crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=(1.0, 0.1), sigma=(0.1, 2.0), kernel=0.1)
        solarize: Solarize = Solarize(p=(0.0, 0.2), threshold=0.5)


class MoCoV2Augmentation(MultiViewAugmentation):
    """MoCo v2's augmentation: larger crops, milder colours, blur on half of the views (arXiv:2003.04297)."""

    class Config(MultiViewAugmentation.Config):
        crop: Crop = Crop(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=0.5, sigma=(0.1, 2.0), kernel=0.1)


class SmallAugmentation(MultiViewAugmentation):
    """SimCLR's CIFAR-10 augmentation, for 32 to 64 px: half the distortion, no blur (Chen et al. 2020, B.9)."""

    class Config(MultiViewAugmentation.Config):
        crop: Crop = Crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, strength=0.5)
        grayscale: Grayscale = Grayscale(p=0.2)


class BeasseAugmentation(MultiViewAugmentation):
    """Mild crops or mild colour jitter, one of the two at random (Beasse and Kabouri 2024, Algorithm 1)."""

    class Config(MultiViewAugmentation.Config):
        crop: Crop = Crop(scale=(0.7, 1.0), ratio=(0.8, 1.2))
        flip: Flip = Flip(p=0.3)
        jitter: Jitter = Jitter(p=1.0, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05)
        either: Probability | None = 0.5


class WeakAugmentation(MultiViewAugmentation):
    """One view: a large crop, flipped half the time; for methods with a pretext task."""

    class Config(MultiViewAugmentation.Config):
        views: int = Field(default=1, ge=1)
        crop: Crop = Crop(scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)


class DigitAugmentation(MultiViewAugmentation):
    """Augmentation for small handwriting: mild crops, slight rotation and shear, no flip, no colour."""

    class Config(MultiViewAugmentation.Config):
        crop: Crop = Crop(scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3))
        rotate: Rotate = Rotate(p=0.8, degrees=15, shear=15, padding="zeros")


class PlainAugmentation(MultiViewAugmentation):
    """No augmentation: the whole image, resized and normalised, for each view."""
