"""Evaluators: what a backbone's features are worth, measured with labels that it never saw.

`base.py` holds the contract and extracts the features, once for all; `cache.py` keeps them on disk. Every other
file is one evaluator, or two that train alike.
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
    from sslkit.evaluation.subject import Features, Subject

__all__ = ["KNN", "MLP", "Evaluator", "Features", "Finetune", "Linear", "Semi", "Subject", "accuracy"]

__getattr__ = lazy_names(
    __name__,
    {
        "Evaluator": "sslkit.evaluation.evaluator",
        "Features": "sslkit.evaluation.subject",
        "Finetune": "sslkit.evaluation.evaluators.finetune",
        "KNN": "sslkit.evaluation.evaluators.knn",
        "Linear": "sslkit.evaluation.evaluators.linear",
        "MLP": "sslkit.evaluation.evaluators.mlp",
        "Semi": "sslkit.evaluation.evaluators.finetune",
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
    }.items():
        register(name, f"sslkit.evaluation.evaluators.{target}")
