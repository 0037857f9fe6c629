"""The augmentations of EMP-SSL and of LeJEPA: more than two views of an image, all drawn alike."""

from pydantic import Field

from sslkit.augment import Blur, Crop, Flip, Grayscale, Jitter, MultiViewAugmentation, Solarize
from sslkit.config.task import Fitted, Task


class PatchAugmentation(MultiViewAugmentation):
    """EMP-SSL's augmentation: many patches of a quarter of the image, colours jittered (Tong et al. 2023).

    Settings of the official code for CIFAR (`dataset/aug.py`); for ImageNet it draws the aspect ratio from 3/4 to
    4/3 (`dataset/aug4img.py`).
    """

    class Config(MultiViewAugmentation.Config):
        views: int = Field(default=20, ge=1)
        """Number of patches of each image; the paper trains with 20, in some runs with up to 200."""
        crop: Crop = Crop(scale=(0.25, 0.25), ratio=(1.0, 1.0))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=0.1, sigma=(0.1, 2.0), kernel=0.1)
        solarize: Solarize = Solarize(p=0.1, threshold=0.5)

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        """Return fewer patches of more different sizes for short runs."""
        own = {"views": task.when_short(8, 20), "crop.scale": task.when_short((0.25, 1.0), (0.25, 0.25))}
        return super().fitted(task) | own


class LeJEPAAugmentation(MultiViewAugmentation):
    """LeJEPA's augmentation without small views: four views, SimCLR's colours, solarization (official example).

    Settings of the official minimal example (`MINIMAL.md`); the paper uses all views alike for networks that
    are no transformers (Balestriero and LeCun 2025, Algorithm 2). For small views, use a multi-crop augmentation.
    """

    class Config(MultiViewAugmentation.Config):
        views: int = Field(default=4, ge=1)
        """Number of views of each image."""
        crop: Crop = Crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        flip: Flip = Flip(p=0.5)
        jitter: Jitter = Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
        grayscale: Grayscale = Grayscale(p=0.2)
        blur: Blur = Blur(p=0.5, sigma=(0.1, 2.0), kernel=0.1)
        solarize: Solarize = Solarize(p=0.2, threshold=0.5)
