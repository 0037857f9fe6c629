"""The contract of an evaluator."""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from sslkit.config.base import Config
from sslkit.evaluation.extraction import Features
from sslkit.evaluation.subject import Subject

if TYPE_CHECKING:
    pass


class Evaluator:
    """Base of every evaluator."""

    class Config(Config):
        """What `evaluators.<name>.<field>=` accepts."""

    needs_labels: ClassVar[bool] = True
    """Whether it judges by the labels of the subject's images; without, it also runs on unlabelled ones."""
    varies: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of figures that are not the same each time, such as seconds."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def protocol(self) -> str:
        """How the figures come about, in words, for evaluations.jsonl."""
        raise NotImplementedError(f"{type(self).__name__} states no protocol")

    def __call__(self, subject: Subject) -> dict[str, float]:
        """The figures by name: {"top1": fraction, "top5": fraction}, or whatever it measures."""
        raise NotImplementedError(f"{type(self).__name__} measures nothing")


def features_at(subject: Subject, layer: str | None) -> Features:
    """The subject's features, or those of an earlier layer: what an evaluator with a setting `layer` judges."""
    return subject.features if layer is None else subject.features_of(layer)


def accuracy(ranking: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """top1 and top5 as fractions, of predictions [M, up to 5] (class numbers, best first, -1 for none).

    With five classes or fewer the best five are all there are, and top5 is 1.
    """
    hits = ranking == labels[:, None]
    top5 = hits.any(1).double().mean().item() if classes > 5 else 1.0
    return {"top1": hits[:, 0].double().mean().item(), "top5": top5}
