"""Evaluators: what a backbone's features are worth, measured with labels that it never saw.

`base.py` holds the contract and extracts the features, once for all; `cache.py` keeps them on disk. Every other
file is one evaluator, or two that train alike.
"""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.lazy import lazy_names

if TYPE_CHECKING:
    from sslkit.evaluators.base import Evaluator, Features, Subject, accuracy
    from sslkit.evaluators.finetune import Finetune, Semi
    from sslkit.evaluators.knn import KNN
    from sslkit.evaluators.linear import Linear
    from sslkit.evaluators.mlp import MLP

__all__ = ["KNN", "MLP", "Evaluator", "Features", "Finetune", "Linear", "Semi", "Subject", "accuracy"]

__getattr__ = lazy_names(
    __name__,
    {
        "Evaluator": "sslkit.evaluators.base",
        "Features": "sslkit.evaluators.base",
        "Finetune": "sslkit.evaluators.finetune",
        "KNN": "sslkit.evaluators.knn",
        "Linear": "sslkit.evaluators.linear",
        "MLP": "sslkit.evaluators.mlp",
        "Semi": "sslkit.evaluators.finetune",
        "Subject": "sslkit.evaluators.base",
        "accuracy": "sslkit.evaluators.base",
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
        register(name, f"sslkit.evaluators.{target}")
