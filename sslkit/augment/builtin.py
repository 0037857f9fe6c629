"""The built-in view recipes: what each paper asks for, as defaults of `Views`."""

from pydantic import Field

from sslkit.augment.multi_view import MultiViewAugmentation
from sslkit.augment.transforms import Blur, Crop, Flip, Grayscale, Jitter, Probability, Rotate, Solarize


class SimCLRAugmentation(MultiViewAugmentation):
    """SimCLR's views: strong colour distortion, blur on half of them (Chen et al. 2020, Appendix A)."""

    class Config(MultiViewAugmentation.Config):
        """What `augment.<field>=` accepts."""

        crop: Crop = Crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=0.5, sigma=(0.1, 2.0), kernel=0.1)


class BYOLAugmentation(MultiViewAugmentation):
    """BYOL's views, of two kinds: one always blurred, one solarized at times (Grill et al. 2020, Table 6)."""

    class Config(MultiViewAugmentation.Config):
        """What `augment.<field>=` accepts."""

        crop: Crop = Crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=(1.0, 0.1), sigma=(0.1, 2.0), kernel=0.1)
        solarize: Solarize = Solarize(p=(0.0, 0.2), threshold=0.5)


class MoCoV2Augmentation(MultiViewAugmentation):
    """MoCo v2's views: larger crops, milder colours, blur on half of them (arXiv:2003.04297)."""

    class Config(MultiViewAugmentation.Config):
        """What `augment.<field>=` accepts."""

        crop: Crop = Crop(scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=0.5, sigma=(0.1, 2.0), kernel=0.1)


class SmallAugmentation(MultiViewAugmentation):
    """For 32 to 64 px: SimCLR's on CIFAR-10, half the distortion, no blur (Chen et al. 2020, B.9)."""

    class Config(MultiViewAugmentation.Config):
        """What `augment.<field>=` accepts."""

        crop: Crop = Crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, strength=0.5)
        grayscale: Grayscale = Grayscale(p=0.2)


class BeasseAugmentation(MultiViewAugmentation):
    """Crops or colours, one of the two at random, both mild (Beasse and Kabouri 2024, Algorithm 1)."""

    class Config(MultiViewAugmentation.Config):
        """What `augment.<field>=` accepts."""

        crop: Crop = Crop(scale=(0.7, 1.0), ratio=(0.8, 1.2))
        flip: Flip = Flip(p=0.3)
        jitter: Jitter = Jitter(p=1.0, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.05)
        either: Probability | None = 0.5


class WeakAugmentation(MultiViewAugmentation):
    """One view: a large crop, mirrored half the time; for methods whose task is the image itself."""

    class Config(MultiViewAugmentation.Config):
        """What `augment.<field>=` accepts."""

        views: int = Field(default=1, ge=1)
        crop: Crop = Crop(scale=(0.7, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)


class DigitAugmentation(MultiViewAugmentation):
    """For small handwriting: mild crops, a little rotation and slant, no mirroring, no colour."""

    class Config(MultiViewAugmentation.Config):
        """What `augment.<field>=` accepts."""

        crop: Crop = Crop(scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3))
        rotate: Rotate = Rotate(p=0.8, degrees=15, shear=15, padding="zeros")


class PlainAugmentation(MultiViewAugmentation):
    """No augmentation: the whole image, resized and normalised, once a view."""
