"""Records of evaluations: results, accuracies and their confidence intervals."""

from collections.abc import Iterable
from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslkit.config.base import Choice

ABOUT = frozenset({"epoch", "step", "n_train", "n_test", "seed", "seconds", "during_run"})
"""Numeric entries of a record that describe it and are not results."""

RANDOM_INIT, RAW_PIXELS, CHANCE = "random_init", "raw_pixels", "chance"
FLOORS = {CHANCE: "chance", RANDOM_INIT: "random init", RAW_PIXELS: "raw pixels"}
"""Floors in the `floors` of a record, and their names for readers: numbers, of top1, or mappings by figure."""
Floors = dict[str, float | dict[str, float]]
"""Floors by name: of top1, as fractions of the test images, or of each figure of an evaluator without top1."""
Z95 = 1.959963984540054
"""The 0.975 quantile of the standard normal distribution: 95 % of it lies within ± this value."""


def is_accuracy(name: str) -> bool:
    """Return True if a figure is a fraction of test images: top1, top5, or a name ending in one, like scratch_top1."""
    return name.rpartition("_")[2] in ("top1", "top5")


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """Return (low, high) of the 95 % interval of an accuracy measured on `n` images, as fractions (Wilson 1927).

    It covers the sampling of test images, but not the variation between training seeds.
    """
    centre = (accuracy + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    reach = Z95 / (1 + Z95**2 / n) * sqrt(accuracy * (1 - accuracy) / n + Z95**2 / (4 * n**2))
    # Rounding must not put the accuracy, at 0 or 1, outside its own interval.
    return max(0.0, min(accuracy, centre - reach)), min(1.0, max(accuracy, centre + reach))


def measured(record: dict[str, Any]) -> dict[str, float]:
    """Return the results in a record, without bounds of intervals and metadata: {"top1": 0.83, "top5": 0.99}."""
    ends = {f"{k}{end}" for k in record if is_accuracy(k) for end in ("_low", "_high")}
    return {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k not in ABOUT | ends}


def figure_of(record: dict[str, Any]) -> float | None:
    """Return the figure that epochs of a run are compared by: top1, without labels view retrieval; None if none."""
    figure: float | None = record.get("top1", record.get("view_retrieval"))
    return figure


def settings_of(evaluator: "Choice") -> dict[str, Any]:
    """Return the settings that determine an evaluator's results, as they stand in its records."""
    return evaluator.options.model_dump(mode="json", exclude={"only_unlabelled"})


def floors_of(record: dict[str, Any], figure: str = "top1") -> dict[str, float]:
    """Return the floors beside a figure of a record, by name; {} if none were measured."""
    floors = record.get("floors")
    if not isinstance(floors, dict):
        return {}
    own = {k: floor if isinstance(floor, dict) else {"top1": floor} for k, floor in floors.items()}
    values = {k: own.get(k, {}).get(figure) for k in FLOORS}
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float)}


def known_floors(records: Iterable[dict[str, Any]], data: str, evaluators: Iterable["Choice"]) -> dict[str, Floors]:
    """Return the floors that a run measured before its first epoch on that data with these evaluators, by their names.

    Its own figures at that moment are those of random initialisation.
    """
    settings = {e.name: settings_of(e) for e in evaluators}
    first = [r for r in records if r.get("epoch") == 0 and r.get("during_run") and r.get("data") == data]
    same = [r for r in first if r.get("floors") and r.get("settings") == settings.get(r["evaluator"])]
    return {r["evaluator"]: {**r["floors"], RANDOM_INIT: r.get("top1", measured(r))} for r in same}


def as_metrics(record: dict[str, Any]) -> dict[str, float]:
    """Return the results in a record under the names that trackers use: {"knn/top1": 0.83}."""
    return {f"{record['evaluator']}/{k}": v for k, v in measured(record).items()}
