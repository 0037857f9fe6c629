"""Evaluators: what a backbone's features are worth, measured with labels that it never saw.

`base.py` holds the contract and extracts the features, once for all; `knn.py` and `linear.py` judge them.
"""

from typing import TYPE_CHECKING, Any

from sslkit.hookspecs import hookimpl
from sslkit.lazy import lazy_names

if TYPE_CHECKING:
    from sslkit.evaluators.base import Evaluator, Features, Subject, accuracy
    from sslkit.evaluators.knn import KNN
    from sslkit.evaluators.linear import Linear

__all__ = ["KNN", "Evaluator", "Features", "Linear", "Subject", "accuracy"]

__getattr__ = lazy_names(
    __name__,
    {
        "Evaluator": "sslkit.evaluators.base",
        "Features": "sslkit.evaluators.base",
        "Subject": "sslkit.evaluators.base",
        "accuracy": "sslkit.evaluators.base",
        "KNN": "sslkit.evaluators.knn",
        "Linear": "sslkit.evaluators.linear",
    },
)


@hookimpl
def register_evaluators(register: Any) -> None:
    register("knn", "sslkit.evaluators.knn:KNN")
    register("linear", "sslkit.evaluators.linear:Linear")
