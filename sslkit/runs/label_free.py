"""Figures of features that need no labels: their names for readers, and which values are better."""

from dataclasses import dataclass
from typing import Any, Literal

from sslkit.runs.records import measured


@dataclass(frozen=True)
class LabelFree:
    """A figure of features that needs no labels."""

    title: str
    """Name for readers."""
    better: Literal["higher", "lower", "nearer to 1"]
    """Values that its paper calls better."""
    fraction: bool = False
    """True if it is a share of images, shown in per cent."""

    def quality(self, value: float) -> float:
        """Return a number that is the higher the better the value is."""
        return {"higher": value, "lower": -value, "nearer to 1": -abs(value - 1)}[self.better]

    def text(self, value: float) -> str:
        if not self.fraction:
            return f"{value:.4g}"
        # Chance among thousands of images is far below a tenth of a per cent.
        return f"{100 * value:.1f} %" if value >= 0.01 or not value else f"{100 * value:.2g} %"


LABEL_FREE = {
    "rankme": LabelFree("RankMe", "higher"),
    "alpha_req": LabelFree("alpha-ReQ", "nearer to 1"),
    "alignment": LabelFree("alignment", "lower"),
    "uniformity": LabelFree("uniformity", "lower"),
    "view_retrieval": LabelFree("view retrieval", "higher", fraction=True),
}
"""The figures of the evaluator `geometry`, by their names in records; papers: `sslkit/nn/geometry.py`."""


def label_free(record: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a record that need no labels, by name: {"rankme": 78.6, ...}; {} if it has none."""
    found = measured(record) if record["evaluator"] == "geometry" else {}
    return {name: found[name] for name in LABEL_FREE if name in found}
