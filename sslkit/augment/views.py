"""The recipe that all built-in ones are made of: named steps in a fixed order."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sslkit.augment import ops
from sslkit.augment.base import Recipe, Triple
from sslkit.augment.draws import Draws, per_view
from sslkit.augment.extra import Extra, ExtraSteps
from sslkit.augment.steps import Blur, Crop, Flip, Grayscale, Jitter, Probability, Rotate, Solarize, boxes_where
from sslkit.config import Config


class Views(Recipe):
    """Views by named steps: shared, rotate, crop, flip, jitter, grayscale, blur, solarize, extra, normalise.

    A recipe is a subclass whose Config gives other defaults. A step with p=0 in every view costs nothing.
    """

    class Config(Recipe.Config):
        """What `augment.<field>=` accepts."""

        views: int = Field(default=2, ge=1)
        """Number of views of each image."""
        shared: Crop = Crop(p=0.0)
        """Random box that all views of an image are made of, resized to their size: p, scale, ratio."""
        crop: Crop = Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
        """Random box: p, scale, ratio."""
        flip: Flip = Flip()
        """Mirror left and right: p."""
        rotate: Rotate = Rotate()
        """Rotate and slant: p, degrees, shear, padding."""
        jitter: Jitter = Jitter()
        """Change colours: p, brightness, contrast, saturation, hue, strength."""
        grayscale: Grayscale = Grayscale()
        """Drop the colour: p."""
        blur: Blur = Blur()
        """Gaussian blur: p, sigma, kernel."""
        solarize: Solarize = Solarize()
        """Invert what is bright: p, threshold."""
        either: Probability | None = None
        """Probability that a view is cropped and keeps its colours, not the other way round; null: both at once."""
        extra: Extra = ()
        """Augmentations of kornia, after the others: [RandomPerspective, {RandomErasing: {p: 0.3}}]."""

        @classmethod
        def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
            """A subclass that only changes a default keeps the help text."""
            for name, field in cls.model_fields.items():
                inherited = [base.model_fields.get(name) for base in cls.__mro__[1:] if hasattr(base, "model_fields")]
                field.description = field.description or next((f.description for f in inherited if f), None)

        @model_validator(mode="before")
        @classmethod
        def _keep_the_rest(cls, given: Any) -> Any:
            """What is not given of a step stays as this recipe has it, not as the step's class does."""
            if not isinstance(given, Mapping):
                return given
            return {name: _over_default(cls.model_fields.get(name), value) for name, value in given.items()}

        @model_validator(mode="after")
        def _one_probability_a_view(self) -> Self:
            if isinstance(self.shared.p, tuple):
                raise ValueError("shared.p is one number, because all views of an image share the box")
            chances = {f"{name}.p": getattr(step, "p", None) for name, step in self} | {"either": self.either}
            for name, p in chances.items():
                if isinstance(p, tuple) and len(p) != self.views:
                    raise ValueError(f"{name} has {len(p)} numbers for {self.views} views; give one a view, or one")
            return self

    config: Config

    def __init__(self, config: Config, image_size: int, mean: Triple, std: Triple) -> None:
        super().__init__(config, image_size, mean, std)
        self.n_views = config.views
        colour = (config.jitter, config.grayscale, config.blur, config.solarize)
        self._colour = [step for step in colour if self._used(step)]
        self.extra = ExtraSteps(config.extra, image_size)

    def _used(self, step: Crop | Flip | Rotate | Jitter | Grayscale | Blur | Solarize) -> bool:
        return any(per_view(step.p, self.n_views))

    @torch.no_grad()
    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """One tensor [V*B, 3, image_size, image_size]; see `Recipe.forward`."""
        draws = Draws(self.n_views, len(images), images.device, generator)
        # Half precision has too few grey levels, and autocast would do the matrix products in it.
        with torch.autocast(images.device.type, enabled=False):
            cropped = None if self.config.either is None else draws.mask(self.config.either)
            views = self._crops(self._shared(ops.to_float(images), draws), draws, cropped)
            for step in self._colour:
                changed = step(views, draws)
                views = changed if cropped is None else torch.where(cropped[:, None, None, None], views, changed)
            if self.extra:
                views = self.extra(views.contiguous(), generator)
            return [ops.normalize(views, self.mean, self.std)]

    def _shared(self, images: Tensor, draws: Draws) -> Tensor:
        if not self._used(self.config.shared):
            return images
        once = Draws(1, len(images), images.device, draws.generator)
        return ops.resized_crop(images, self.config.shared.sample(once, *images.shape[2:]), None, self.image_size)

    def _crops(self, images: Tensor, draws: Draws, cropped: Tensor | None) -> Tensor:
        boxes = self.config.crop.sample(draws, *images.shape[2:])
        if cropped is not None:
            boxes = boxes_where(cropped, boxes, *images.shape[2:])
        flip = draws.mask(self.config.flip.p) if self._used(self.config.flip) else None
        if self._used(self.config.rotate):
            images = self.config.rotate(images.repeat(self.n_views, 1, 1, 1), draws)
        return ops.resized_crop(images, boxes, flip, self.image_size)


def _over_default(field: Any, value: Any) -> Any:
    default = getattr(field, "default", None)
    return {**dict(default), **value} if isinstance(default, Config) and isinstance(value, Mapping) else value
