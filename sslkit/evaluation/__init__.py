"""Evaluation of a backbone's features, in most cases with labels that were not used in pre-training.

`evaluate.py` runs evaluators on a `Subject` (`subject.py`): a backbone and labelled images, whose features
`extraction.py` computes once for all evaluators and `cache.py` stores on disk. `evaluator.py` defines the contract of
an evaluator, `evaluators/` contains the built-in ones, one per file. `targets.py` opens a run, a weights file or a
plain backbone.
"""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.evaluation.evaluator import Evaluator, accuracy
    from sslkit.evaluation.evaluators.finetune import Finetune, Semi
    from sslkit.evaluation.evaluators.knn import KNN
    from sslkit.evaluation.evaluators.linear import Linear
    from sslkit.evaluation.evaluators.mlp import MLP
    from sslkit.evaluation.extraction import Features, Preprocessing
    from sslkit.evaluation.subject import Subject

__all__ = ["KNN", "MLP", "Evaluator", "Features", "Finetune", "Linear", "Preprocessing", "Semi", "Subject", "accuracy"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Evaluator": "sslkit.evaluation.evaluator",
        "Features": "sslkit.evaluation.extraction",
        "Finetune": "sslkit.evaluation.evaluators.finetune",
        "KNN": "sslkit.evaluation.evaluators.knn",
        "Linear": "sslkit.evaluation.evaluators.linear",
        "MLP": "sslkit.evaluation.evaluators.mlp",
        "Semi": "sslkit.evaluation.evaluators.finetune",
        "Preprocessing": "sslkit.evaluation.extraction",
        "Subject": "sslkit.evaluation.subject",
        "accuracy": "sslkit.evaluation.evaluator",
    },
)


@hookimpl
def register_evaluators(register: Any) -> None:
    for name, target in {
        "knn": "knn:KNN",
        "linear": "linear:Linear",
        "mlp": "mlp:MLP",
        "semi": "finetune:Semi",
        "finetune": "finetune:Finetune",
        "transfer": "transfer:Transfer",
        "transforms": "transforms:Transforms",
        "retrieval": "retrieval:Retrieval",
        "confusion": "confusion:Confusion",
        "saliency": "saliency:Saliency",
        "embedding": "embedding:Embedding",
        "robustness": "robustness:Robustness",
        "cost": "cost:Cost",
        "geometry": "geometry:Geometry",
    }.items():
        register(name, f"sslkit.evaluation.evaluators.{target}")
