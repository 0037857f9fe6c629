"""Records of evaluations: which figures are accuracies, and their confidence intervals."""

from math import sqrt
from typing import Any

ABOUT = frozenset({"epoch", "step", "n_train", "n_test", "seed", "seconds", "during_run"})
"""Numbers of a record that describe it and are no result."""


Z95 = 1.959963984540054
"""Of a standard normal variable, 95 % lies within ± this."""


def is_accuracy(name: str) -> bool:
    """Whether a figure is a fraction of test images: top1, top5, and names that end so, as scratch_top1 does."""
    return name.rpartition("_")[2] in ("top1", "top5")


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """Ends of the 95 % interval of an accuracy measured on `n` images, as fractions (Wilson 1927).

    It is about which images happened to be tested; other seeds of training are not in it.
    """
    centre = (accuracy + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    reach = Z95 / (1 + Z95**2 / n) * sqrt(accuracy * (1 - accuracy) / n + Z95**2 / (4 * n**2))
    # Rounding must not put the accuracy, at 0 or 1, outside its own interval.
    return max(0.0, min(accuracy, centre - reach)), min(1.0, max(accuracy, centre + reach))


def measured(record: dict[str, Any]) -> dict[str, float]:
    """What an evaluator found, without what is said about it: {"top1": 0.83, "top5": 0.99}."""
    ends = {f"{k}{end}" for k in record if is_accuracy(k) for end in ("_low", "_high")}
    return {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k not in ABOUT | ends}


def as_metrics(record: dict[str, Any]) -> dict[str, float]:
    """A record as plain floats for trackers: {"knn/top1": 0.83}."""
    return {f"{record['evaluator']}/{k}": v for k, v in measured(record).items()}
