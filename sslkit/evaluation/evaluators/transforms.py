"""Information about image transformations that is left in the representation, before and after the head."""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from sslkit.evaluation.drawing.images import features_of_changed
from sslkit.evaluation.evaluator import Evaluator
from sslkit.evaluation.evaluators import logistic
from sslkit.evaluation.subject import Subject
from sslkit.methods.transforms import gradient, quarter_turns

LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601-2 weights of red, green and blue."""


class Transforms(Evaluator):
    """Predict from h and from g(h) how the image was transformed (SimCLR, Table 3).

    Four questions: colour or grey, rotated by 0, 90, 180 or 270 degrees, original or with Gaussian noise, original or
    Sobel-filtered. Every image gets one of the answers, all equally often, so that guessing scores 1/2, and 1/4 for
    rotation. Classifiers are trained on training images and tested on test images; class labels are not used. The
    paper trains MLPs, and its methods see those transformations during training; here the classifier is linear.
    Results: `colour_h` is the accuracy from the backbone's features, `colour_g` that from the projection head's
    embedding of them (left out if there is no head).
    """

    class Config(Evaluator.Config):
        noise: float = Field(0.1, gt=0)
        """Standard deviation of the Gaussian noise, where white is 1."""
        l2: float = Field(1.0, ge=0)
        """L2 penalty of the classifier: l2/2 · ‖W‖² is added to the summed loss (scikit-learn's 1/C)."""
        max_images: int = Field(10_000, ge=4)
        """Largest number of training images, and of test images, drawn by the seed."""

    config: Config

    @property
    def protocol(self) -> str:
        return (
            f"linear classifier (L-BFGS, l2={self.config.l2:g}) of the transformation, on h and on g(h), one balanced "
            f"draw an image, noise {self.config.noise:g}, up to {self.config.max_images} images a split"
        )

    def __call__(self, subject: Subject) -> dict[str, float]:
        head = getattr(subject, "head", None)
        if head is None:
            subject.note("There is no projection head, so g(h) is not evaluated.")
        figures: dict[str, float] = {}
        for name, (answers, change) in self._questions().items():
            (train_h, train_y), (test_h, test_y) = (
                _transformed(subject, split, answers, change, self.config.max_images) for split in ("train", "test")
            )
            figures[f"{name}_h"] = self._accuracy(train_h, train_y, test_h, test_y, answers)
            if head is not None:
                train_g, test_g = _through(head, train_h), _through(head, test_h)
                figures[f"{name}_g"] = self._accuracy(train_g, train_y, test_g, test_y, answers)
        return figures

    def _questions(self) -> "dict[str, tuple[int, Change]]":
        noise = self.config.noise
        return {
            "colour": (2, lambda x, answer, generator: _where(answer, grey(x), x)),
            "rotation": (4, lambda x, answer, generator: quarter_turns(x, answer)),
            "noise": (2, lambda x, answer, generator: _where(answer, add_noise(x, noise, generator), x)),
            "sobel": (2, lambda x, answer, generator: _where(answer, sobel(x), x)),
        }

    def _accuracy(self, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, answers: int) -> float:
        probe = logistic.fit(train_x, train_y, answers, l2=self.config.l2)
        return logistic.share_right(probe.ranking(test_x)[:, 0], test_y)


Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(uint8 [n, 3, S, S], answers int64 [n], generator) -> the images, transformed by their answers."""


def grey(images: Tensor) -> Tensor:
    """Replace all three channels by the luma."""
    weights = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True).round().to(torch.uint8).expand_as(images)


def add_noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of this standard deviation, where white is 1."""
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + 255 * deviation * noise).round().clamp(0, 255).to(torch.uint8)


def sobel(images: Tensor) -> Tensor:
    """Magnitude of the luma's gradient, estimated by the Sobel filter, in all three channels."""
    across, down = gradient(grey(images)[:, :1].float())
    return (8 * torch.hypot(across, down)).round().clamp(0, 255).to(torch.uint8).expand_as(images)


def _where(answer: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(answer.bool()[:, None, None, None], changed, images)


def _transformed(subject: Subject, split: str, answers: int, change: Change, most: int) -> tuple[Tensor, Tensor]:
    """Return (features, answers) of a split's images, labelled or not."""
    store = getattr(subject, split)
    generator = torch.Generator().manual_seed(subject.seed)
    rows = torch.randperm(len(store), generator=generator)[:most].sort().values
    answer = (torch.randperm(len(rows), generator=generator) % answers).to(subject.device)

    def apply(images: Tensor, places: Tensor) -> Tensor:
        return change(images, answer[places], generator)

    return features_of_changed(subject, store, rows.numpy(), apply), answer


@torch.no_grad()
def _through(head: torch.nn.Module, x: Tensor) -> Tensor:
    return torch.cat([head(part) for part in x.split(4096)]).float()
