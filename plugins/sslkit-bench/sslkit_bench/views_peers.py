"""The augmentation of a run in other libraries: a kornia container, and torchvision's transforms on single images."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sslkit.augment.draws import per_view
from sslkit.augment.kornia_transforms import build as build_extra
from sslkit.augment.multi_view import MultiViewAugmentation
from sslkit.data.loaders.base import ImageBatch
from sslkit.machine.environment import core_count
from sslkit.training.setup import TrainingSetup
from sslkit_bench.clock import Contestant, NotTheSame
from sslkit_bench.workers import Workers

STEPS = ("rotate", "crop", "flip", "jitter", "grayscale", "blur", "solarize")
"""Transforms of an augmentation, in the order of their application."""


def steps_of(options: Any, view: int) -> Iterator[tuple[str, Any, float]]:
    """Yield (name, settings, probability) of the transforms of view number `view`.

    Raises NotTheSame if the augmentation uses anything else.
    """
    if not isinstance(options, MultiViewAugmentation.Config):
        raise NotTheSame("the augmentation does not consist of single transforms")
    for name in ("shared", "either"):
        if getattr(getattr(options, name), "p", getattr(options, name)):
            raise NotTheSame(f"no equivalent of augment.{name}")
    for name in STEPS:
        step = getattr(options, name)
        p = per_view(step.p, options.views)[view]
        if name == "crop" and p != 1:
            raise NotTheSame("no equivalent of a crop with a probability below 1")
        if p:
            yield name, step, p


class Kornia(Contestant):
    """One AugmentationSequential per view, on a batch of uint8 images that is already on the device."""

    name, foreign = "kornia", True

    def __init__(self, setup: TrainingSetup, image_batch: ImageBatch) -> None:
        options = setup.config.augment.options
        self.images = len(image_batch.indices)
        self.note = f"AugmentationSequential, batched, on {setup.device}"
        numbers = range(getattr(options, "views", 1))
        self._containers = [kornia_container(options, n, setup).to(setup.device) for n in numbers]
        self._batch = image_batch

    @torch.no_grad()
    def step(self) -> None:
        self.views()

    def views(self) -> list[Tensor]:
        """Return one tensor [B, 3, size, size] per view."""
        images = self._batch.images.float() / 255
        return [container(images) for container in self._containers]


def kornia_container(options: Any, view: int, setup: TrainingSetup) -> Any:
    """Return view number `view` of the augmentation as a kornia module for images in [0, 1]. Raises NotTheSame."""
    import kornia.augmentation as kornia

    made: dict[str, Callable[[Any, float, int], Any]] = {
        "rotate": lambda s, p, _: kornia.RandomAffine(s.degrees, shear=(-s.shear, s.shear), p=p),
        "crop": lambda s, p, size: kornia.RandomResizedCrop((size, size), s.scale, s.ratio, p=p),
        "flip": lambda s, p, _: kornia.RandomHorizontalFlip(p=p),
        "jitter": lambda s, p, _: kornia.ColorJitter(*_strengths(s), p=p),
        "grayscale": lambda s, p, _: kornia.RandomGrayscale(p=p),
        "blur": lambda s, p, size: kornia.RandomGaussianBlur((s.kernel_size(size),) * 2, s.sigma, p=p),
        "solarize": lambda s, p, _: kornia.RandomSolarize((s.threshold, s.threshold), (0.0, 0.0), p=p),
    }
    size = setup.stores.image_size
    steps = [made[name](step, p, size) for name, step, p in steps_of(options, view)]
    steps += [build_extra(name, given) for step in options.extra for name, given in step.items()]
    mean, std = torch.tensor(setup.stores.mean), torch.tensor(setup.stores.std)
    return kornia.AugmentationSequential(*steps, kornia.Normalize(mean, std), data_keys=["input"])


class Torchvision(Contestant):
    """transforms.v2 on single PIL images in worker processes; the batch is then copied to the device."""

    name, foreign = "torchvision", True

    def __init__(self, setup: TrainingSetup, image_batch: ImageBatch) -> None:
        options, workers = setup.config.augment.options, core_count(setup.config.workers)
        self.images, self.least = len(image_batch.indices), workers
        self.note = f"transforms.v2 on PIL images from memory, {workers} worker processes"
        transforms = [torchvision_transform(options, n, setup) for n in range(getattr(options, "views", 1))]
        pixels = image_batch.images.permute(0, 2, 3, 1).cpu().numpy()
        self._workers = Workers(Pictures(pixels, transforms), self.images, workers)
        self._device = setup.device

    def begin(self) -> None:
        self._workers.wake()

    def step(self) -> None:
        for view in next(self._workers):
            view.to(self._device)

    def end(self) -> None:
        self._workers.rest()

    def close(self) -> None:
        self._workers.close()


class Pictures(Dataset[list[Tensor]]):
    """Data set of the views of images in memory, uint8 [N, H, W, 3], with one transform of PIL images per view."""

    def __init__(self, pixels: np.ndarray, transforms: list[Any]) -> None:
        self._pixels, self._transforms = pixels, transforms

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> list[Tensor]:
        image = Image.fromarray(self._pixels[index])
        return [transform(image) for transform in self._transforms]


def torchvision_transform(options: Any, view: int, setup: TrainingSetup) -> Any:
    """Return view number `view` of the augmentation as a transform of PIL images. Raises NotTheSame."""
    from torchvision.transforms import v2

    def at_times(step: Any, p: float) -> Any:
        return v2.RandomApply([step], p)

    made: dict[str, Callable[[Any, float, int], Any]] = {
        "rotate": lambda s, p, _: at_times(v2.RandomAffine(s.degrees, shear=(-s.shear, s.shear)), p),
        "crop": lambda s, p, size: v2.RandomResizedCrop(size, s.scale, s.ratio),
        "flip": lambda s, p, _: v2.RandomHorizontalFlip(p),
        "jitter": lambda s, p, _: at_times(v2.ColorJitter(*_strengths(s)), p),
        "grayscale": lambda s, p, _: v2.RandomGrayscale(p),
        "blur": lambda s, p, size: at_times(v2.GaussianBlur(s.kernel_size(size), s.sigma), p),
        "solarize": lambda s, p, _: v2.RandomSolarize(255 * s.threshold, p),
    }
    steps = [made[name](step, p, setup.stores.image_size) for name, step, p in steps_of(options, view)]
    if options.extra:
        raise NotTheSame("no equivalent of augment.extra")
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, *to_float, v2.Normalize(list(setup.stores.mean), list(setup.stores.std))])


def _strengths(jitter: Any) -> tuple[float, float, float, float]:
    """Return brightness, contrast, saturation and hue, multiplied by the strength."""
    three = (jitter.brightness, jitter.contrast, jitter.saturation)
    first, second, third = (jitter.strength * value for value in three)
    return first, second, third, min(0.5, jitter.strength * jitter.hue)
