"""The contract of an evaluator."""

from typing import Any, ClassVar

from torch import Tensor

from sslkit.config import base
from sslkit.evaluation.extraction import Features
from sslkit.evaluation.subject import Subject


class Evaluator:
    """Base class of evaluators."""

    class Config(base.Config):
        """Settings `evaluators.<name>.<field>=`."""

    needs_labels: ClassVar[bool] = True
    """True if the evaluator uses the labels of the subject's images; otherwise it also runs on unlabelled images."""
    judges_features: ClassVar[bool] = False
    """True if it returns a top1 that follows from the subject's features alone: floors can then be measured."""
    beside_random_init: ClassVar[bool] = False
    """True if its results, none of them top1, mean little until those of the untrained network stand beside them."""
    varies: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of results that are not reproducible, such as seconds."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def protocol(self) -> str:
        """Description of how the results are obtained, for evaluations.jsonl."""
        raise NotImplementedError(f"{type(self).__name__} states no protocol")

    def __call__(self, subject: Subject) -> dict[str, float]:
        """Measure the subject and return results by name, such as {"top1": fraction, "top5": fraction}."""
        raise NotImplementedError(f"{type(self).__name__} measures nothing")

    def chance(self, subject: Subject) -> dict[str, float]:
        """Return the results that features without any information would have, by name, where that is known."""
        return {}


def features_at(subject: Subject, layer: str | None) -> Features:
    """Return the subject's features, or those of an earlier layer, for evaluators with a setting `layer`."""
    return subject.features if layer is None else subject.features_of(layer)


def accuracy(ranking: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Top-1 and top-5 accuracy as fractions: {"top1": ..., "top5": ...}.

    ranking: predicted class numbers [M, up to 5], best first, -1 for none. labels: [M].
    With five classes or fewer, top5 is 1.
    """
    hits = ranking == labels[:, None]
    top5 = hits.any(1).double().mean().item() if classes > 5 else 1.0
    return {"top1": hits[:, 0].double().mean().item(), "top5": top5}
