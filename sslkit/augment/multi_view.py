"""The augmentation that all built-in ones derive from: named transforms in a fixed order."""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sslkit.augment import ops
from sslkit.augment.base import Augmentation, Triple
from sslkit.augment.draws import Draws, PresampledDraws, per_view
from sslkit.augment.kornia_transforms import Extra, KorniaTransforms
from sslkit.augment.parameters import Parameters, render_plain
from sslkit.augment.transforms import Blur, Crop, Flip, Grayscale, Jitter, Probability, Rotate, Solarize, boxes_where
from sslkit.config.base import Config
from sslkit.config.task import Fitted, Task

Kernels = Literal["auto", "plain"]


LEAST_CROP = 0.2
"""Smallest share of an image that a view of a short run shows."""


class MultiViewAugmentation(Augmentation):
    """Views by named transforms: shared, rotate, crop, flip, jitter, grayscale, blur, solarize, extra, normalise.

    An augmentation is a subclass whose Config gives other defaults. A transform with p=0 in every view costs nothing.
    """

    class Config(Augmentation.Config):
        views: int = Field(default=2, ge=1)
        """Number of views of each image."""
        shared: Crop = Crop(p=0.0)
        """Random crop, resized to the size of a view, that all views of an image are taken from: p, scale, ratio."""
        crop: Crop = Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
        """Random crop: p, scale, ratio."""
        flip: Flip = Flip()
        """Flip horizontally: p."""
        rotate: Rotate = Rotate()
        """Rotate and shear: p, degrees, shear, padding."""
        jitter: Jitter = Jitter()
        """Jitter the colours: p, brightness, contrast, saturation, hue, strength."""
        grayscale: Grayscale = Grayscale()
        """Remove the colour: p."""
        blur: Blur = Blur()
        """Gaussian blur: p, sigma, kernel."""
        solarize: Solarize = Solarize()
        """Invert bright values: p, threshold."""
        either: Probability | None = None
        """Probability that a view is cropped and keeps its colours, instead of the reverse; null: both apply."""
        extra: Extra = ()
        """kornia augmentations, after the other transforms: [RandomPerspective, {RandomErasing: {p: 0.3}}]."""

        @classmethod
        def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
            """Inherit the help text of a field for which a subclass only changes the default."""
            for name, field in cls.model_fields.items():
                inherited = [base.model_fields.get(name) for base in cls.__mro__[1:] if hasattr(base, "model_fields")]
                field.description = field.description or next((f.description for f in inherited if f), None)

        @model_validator(mode="before")
        @classmethod
        def _complete_transforms(cls, given: Any) -> Any:
            """Fill in a transform given in part from this augmentation's defaults instead of the transform class's."""
            if not isinstance(given, Mapping):
                return given
            return {name: _over_default(cls.model_fields.get(name), value) for name, value in given.items()}

        @model_validator(mode="after")
        def _one_probability_a_view(self) -> Self:
            if isinstance(self.shared.p, tuple):
                raise ValueError("shared.p is one number, because all views of an image share the box")
            chances = {f"{name}.p": getattr(transform, "p", None) for name, transform in self} | {"either": self.either}
            for name, p in chances.items():
                if isinstance(p, tuple) and len(p) != self.views:
                    raise ValueError(f"{name} has {len(p)} numbers for {self.views} views; give one a view, or one")
            return self

    config: Config

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        """Return milder crops for short runs, and for small images weaker colours and no blur (SimCLR, B.9)."""
        usual = cls.Config()
        advice: dict[str, Fitted] = {}
        if task.short and usual.crop.scale[0] < LEAST_CROP:
            advice["crop.scale"] = Fitted((LEAST_CROP, usual.crop.scale[1]), f"{task.steps:,} steps are few")
        if task.small and usual.jitter.brightness * usual.jitter.strength > 0.4:
            advice["jitter.strength"] = Fitted(0.4 / usual.jitter.brightness, f"images of {task.image_size} px")
        if task.small and usual.blur.p not in (0.0, (0.0,) * usual.views):
            advice["blur.p"] = Fitted(0.0, f"images of {task.image_size} px")
        return advice

    def __init__(self, config: Config, image_size: int, mean: Triple, std: Triple) -> None:
        super().__init__(config, image_size, mean, std)
        self.n_views = config.views
        self.extra = KorniaTransforms(config.extra, image_size)
        self.kernels: Kernels = "auto"
        """auto: numba on the CPU, and the result of `compile` elsewhere; plain: neither."""
        self._compiled: Callable[[Tensor, Tensor], Tensor] | None = None
        self._columns = self._count_columns()

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Return one tensor [V*B, 3, image_size, image_size]; see `Augmentation.forward`."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, not {images.dtype}")
        numbers = self._numbers(images, generator)
        # Half precision has too few grey levels, and autocast would compute the matrix products in it.
        with torch.autocast(images.device.type, enabled=False):
            views = self._renderer(images.device)(images, numbers)
            if self.extra:
                views = ops.normalize(self.extra(views.contiguous(), generator), self.mean, self.std)
        return [views]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all of a batch's operations into one, except on the CPU; arguments as in `torch.compile`."""
        self._compiled = torch.compile(self._plain, *args, dynamic=False, **kwargs)

    def compile_no_longer(self) -> None:
        """Undo `compile`."""
        self._compiled = None

    def _renderer(self, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        if self.kernels == "auto" and self._compiled is not None:
            return self._compiled
        if self.kernels == "auto" and device.type == "cpu" and not numba_missing():
            return self._by_numba
        return self._plain

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> Parameters:
        """Return the parameters that `forward` would apply given the same arguments."""
        return self._drawn(images, self._numbers(images, generator))

    def _numbers(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return Draws(self.n_views, len(images), images.device, generator).table(self._columns)

    def _drawn(self, images: Tensor, numbers: Tensor) -> Parameters:
        return self._sample(PresampledDraws(self.n_views, numbers), *images.shape[2:])

    def _plain(self, images: Tensor, numbers: Tensor) -> Tensor:
        return render_plain(images, self._drawn(images, numbers), self.image_size, *self._normalisation)

    def _by_numba(self, images: Tensor, numbers: Tensor) -> Tensor:
        from sslkit.augment import cpu_kernels

        return cpu_kernels.render(images, self._drawn(images, numbers), self.image_size, *self._normalisation)

    @property
    def _normalisation(self) -> tuple[Triple, Triple]:
        """Mean and deviation; with kornia transforms the identity, because their output is normalised afterwards."""
        return ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) if self.extra else (self.mean, self.std)

    def _sample(self, draws: Draws, height: int, width: int) -> Parameters:
        """Draw the parameters of the views of images of height × width pixels."""
        config = self.config
        cropped = None if config.either is None else draws.mask(config.either)
        shared = None
        if self._used(config.shared):
            shared = config.shared.sample(draws, height, width)[: draws.images]
            height = width = self.image_size
        boxes = config.crop.sample(draws, height, width)
        factors, order = config.jitter.sample(draws) if self._used(config.jitter) else (None, None)
        drawn = Parameters(
            boxes=boxes if cropped is None else boxes_where(cropped, boxes, height, width),
            flip=draws.mask(config.flip.p) if self._used(config.flip) else None,
            shared=shared,
            rotation=config.rotate.sample(draws) if self._used(config.rotate) else None,
            padding=config.rotate.padding,
            factors=factors,
            order=order,
            gray=draws.mask(config.grayscale.p) if self._used(config.grayscale) else None,
            sigma=config.blur.sample(draws) if self._used(config.blur) else None,
            kernel_size=config.blur.kernel_size(self.image_size),
            solarized=draws.mask(config.solarize.p) if self._used(config.solarize) else None,
            threshold=config.solarize.threshold,
        )
        return drawn if cropped is None else drawn.colours_kept(cropped)

    def _used(self, transform: Crop | Flip | Rotate | Jitter | Grayscale | Blur | Solarize) -> bool:
        return any(per_view(transform.p, self.n_views))

    def _count_columns(self) -> int:
        """Count the random numbers that a view takes, in a trial with more than enough of them."""
        draws = PresampledDraws(self.n_views, torch.zeros(self.n_views, 1000))
        self._sample(draws, self.image_size, self.image_size)
        return draws.used_columns


@cache
def numba_missing() -> bool:
    """Return True if numba, which compiles the CPU kernels, is not installed or does not support this numpy."""
    try:
        import_module("numba")
    except ImportError:
        return True
    return False


def _over_default(field: Any, value: Any) -> Any:
    default = getattr(field, "default", None)
    return {**dict(default), **value} if isinstance(default, Config) and isinstance(value, Mapping) else value
