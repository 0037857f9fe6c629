"""Quality of features without labels: rank, decay of the spectrum, alignment, uniformity, retrieval of views."""

import torch
from pydantic import Field
from torch import Tensor

from sslkit.augment import Crop, Flip, Grayscale, Jitter
from sslkit.augment.multi_view import MultiViewAugmentation
from sslkit.errors import UserError
from sslkit.evaluation.drawing.images import drawn
from sslkit.evaluation.evaluator import Evaluator
from sslkit.evaluation.subject import Subject
from sslkit.nn import geometry
from sslkit.nn.modes import eval_mode


class Geometry(Evaluator):
    """Figures of the features that need no labels: RankMe, alpha-ReQ, alignment, uniformity, view retrieval.

    RankMe (Garrido et al. 2023) and alpha-ReQ (Agrawal et al. 2022) are of one plain view of each image; alignment,
    uniformity (Wang and Isola 2020) and view retrieval are of two random views. The views are the same for every
    method, whatever it was trained with, so that runs can be compared.
    """

    class Config(Evaluator.Config):
        images: int = Field(2000, ge=2)
        """Largest number of images, drawn by the seed; retrieval is harder among more."""
        crop: tuple[float, float] = (0.2, 1.0)
        """Smallest and largest share of the image in a view."""
        strength: float = Field(0.5, ge=0)
        """Strength of the change of colours in a view; 1 is SimCLR's on ImageNet."""
        only_unlabelled: bool = False
        """Measure nothing where there are labels; true for runs that name no evaluators."""

    config: Config
    needs_labels = False
    beside_random_init = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.count = config.images

    @property
    def protocol(self) -> str:
        low, high = self.config.crop
        views = f"two views: crop {low:g} to {high:g}, flip, colour {self.config.strength:g}, grayscale"
        return f"{self.count} images; RankMe and alpha-ReQ of plain views, the rest of {views}"

    @torch.no_grad()
    def __call__(self, subject: Subject) -> dict[str, float]:
        plain, first, second = self._features(subject)
        self.count = len(plain)
        return {
            "rankme": geometry.rankme(plain),
            "alpha_req": geometry.alpha_req(plain),
            "alignment": geometry.alignment(first, second),
            "uniformity": geometry.uniformity(torch.cat([first, second])),
            "view_retrieval": geometry.view_retrieval(first, second),
        }

    def chance(self, subject: Subject) -> dict[str, float]:
        return {"view_retrieval": 1 / min(self.config.images, len(subject.test))}

    def _features(self, subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
        """Features [N, width] of a plain view and of two random views of the same images."""
        from sslkit.data import in_order

        store = subject.test
        rows = drawn(len(store), self.config.images, subject.seed)
        augmentation = self._augmentation(subject)
        generator = torch.Generator(subject.device).manual_seed(subject.seed)
        batch_size = subject.preprocessing.batch_size
        parts: list[tuple[Tensor, ...]] = []
        with eval_mode(subject.backbone):
            for batch in in_order(store.subset(rows), batch_size=batch_size, device=subject.device):
                (random,) = augmentation(batch.images, generator)
                views = (subject.views(batch.images), *random.chunk(2))
                parts.append(tuple(subject.backbone(view).float() for view in views))
        plain, first, second = (torch.cat(part) for part in zip(*parts))
        if not torch.cat([plain, first, second]).isfinite().all():
            raise UserError("the backbone's features are not finite: its weights are damaged, or training diverged")
        return plain, first, second

    def _augmentation(self, subject: Subject) -> MultiViewAugmentation:
        settings = MultiViewAugmentation.Config(
            crop=Crop(scale=self.config.crop),
            flip=Flip(p=0.5),
            jitter=Jitter(p=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, strength=self.config.strength),
            grayscale=Grayscale(p=0.2),
        )
        plain = subject.preprocessing
        return MultiViewAugmentation(settings, plain.image_size, plain.mean, plain.std).to(plain.device)
