"""Results of a run: accuracies after the last epoch, at random initialisation, and, labelled so, maxima over epochs.

Figures without labels stand beside random initialisation too, without a maximum.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sslkit.runs.directory import RunFiles
from sslkit.runs.fields import Record, is_number
from sslkit.runs.label_free import LABEL_FREE, LabelFree, label_free
from sslkit.runs.records import CHANCE, RANDOM_INIT, RAW_PIXELS, floors_of

Key = tuple[str, str, str, str]
"""Evaluator, figure, protocol, data: only results that agree in all four belong to one curve."""
NO_RESULT = frozenset({"epoch", "step", "n_train", "n_test", "seed", "seconds"})


@dataclass(frozen=True)
class Accuracy:
    """An accuracy as a fraction, with its 95 % interval if the record has one."""

    epoch: float
    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return percent(self.value)

    @property
    def interval(self) -> str:
        """The interval as text, or an empty string."""
        if self.low is None or self.high is None:
            return ""
        return f"95 % interval {percent(self.low)} to {percent(self.high)}"


@dataclass(frozen=True)
class Headline:
    """One accuracy over the epochs of a run."""

    evaluator: str
    figure: str
    protocol: str
    data: str
    epochs: tuple[Accuracy, ...]
    """In order, one per epoch."""
    raw_pixels: float | None = None
    """Accuracy of the same evaluator on raw pixels, as a fraction; None if it was not measured."""
    chance: float | None = None
    """Share of the most frequent class among the test images; None if unknown."""

    @property
    def title(self) -> str:
        return f"{self.evaluator} {self.figure.replace('top1', 'top-1').replace('_', ' ')}"

    @property
    def last(self) -> Accuracy:
        return self.epochs[-1]

    @property
    def first(self) -> Accuracy | None:
        """The accuracy at random initialisation; None if it was not measured, or if nothing was measured after it."""
        return self.epochs[0] if self.epochs[0].epoch == 0 and self.last.epoch > 0 else None

    @property
    def best(self) -> Accuracy:
        """The maximum over epochs of training; it is selected on the test images, so it is never the headline."""
        return max((a for a in self.epochs if a.epoch > 0), key=lambda a: a.value, default=self.last)

    @property
    def gain(self) -> str:
        return "" if self.first is None else f"{100 * (self.last.value - self.first.value):+.1f} points"


@dataclass(frozen=True)
class WithoutLabels:
    """One figure that needs no labels over the epochs of a run."""

    name: str
    """Its name in records, such as rankme."""
    protocol: str
    data: str
    epochs: tuple[tuple[float, float], ...]
    """(epoch, value), in order, one per epoch."""
    random_init: float | None
    """Its value at random initialisation; None if that was not measured, or if nothing was measured after it."""
    chance: float | None
    """Its value for features without any information; None where that is unknown."""

    @property
    def about(self) -> LabelFree:
        return LABEL_FREE[self.name]

    @property
    def last(self) -> tuple[float, float]:
        return self.epochs[-1]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def headlines(run: RunFiles) -> list[Headline]:
    """Return every accuracy of a run, in order of first occurrence; later measurements of an epoch replace earlier.

    One that was measured at random initialisation only is no result of the run, unless nothing says when it was.
    """
    found: dict[Key, dict[float, Accuracy]] = {}
    floors: dict[Key, dict[str, float]] = {}
    for record in run.evaluations:
        for figure in accuracies(record):
            key = (record["evaluator"], figure, str(record.get("protocol", "")), str(record.get("data", "")))
            one = _accuracy(record, figure)
            found.setdefault(key, {})[one.epoch] = one
            floors[key] = floors_of(record) if figure == "top1" else {}
    return [
        Headline(
            *key,
            tuple(by_epoch[e] for e in sorted(by_epoch)),
            raw_pixels=floors[key].get(RAW_PIXELS),
            chance=floors[key].get(CHANCE),
        )
        for key, by_epoch in found.items()
        if any(by_epoch)
    ]


def without_labels(run: RunFiles) -> list[WithoutLabels]:
    """Return every figure without labels of a run, in order of first occurrence; the newest of an epoch counts."""
    records: dict[tuple[str, str, str], dict[float, Record]] = {}
    for record in run.evaluations:
        for name in label_free(record):
            key = (name, str(record.get("protocol", "")), str(record.get("data", "")))
            records.setdefault(key, {})[record.get("epoch", 0)] = record
    return [_over_epochs(*key, by_epoch) for key, by_epoch in records.items() if any(by_epoch)]


def _over_epochs(name: str, protocol: str, data: str, by_epoch: dict[float, Record]) -> WithoutLabels:
    epochs = tuple((epoch, float(by_epoch[epoch][name])) for epoch in sorted(by_epoch))
    first = epochs[0][1] if epochs[0][0] == 0 and len(epochs) > 1 else None
    floors = floors_of(by_epoch[epochs[-1][0]], name)
    return WithoutLabels(name, protocol, data, epochs, floors.get(RANDOM_INIT, first), floors.get(CHANCE))


def accuracies(record: Record) -> list[str]:
    """Return the names of a record's accuracies, except top5, which is only in the table of all measurements."""
    return [name for name in results(record) if _is_fraction(record, name) and not name.endswith("top5")]


def results(record: Record) -> dict[str, float]:
    """Return the results in a record, without bounds of intervals and metadata."""
    found = {k: v for k, v in record.items() if is_number(v) and k not in NO_RESULT}
    return {k: v for k, v in found.items() if k.rpartition("_")[0] not in found or not k.endswith(("_low", "_high"))}


def in_words(record: Record) -> str:
    """Format a record's results as text: accuracies in per cent, with their intervals."""
    return ", ".join(_formatted(record, name, value) for name, value in results(record).items())


def shared_headline(runs: Iterable[RunFiles]) -> tuple[str, str] | None:
    """Return the (evaluator, figure) that most runs have; ties go to the linear probe, then to the first one."""
    counts: dict[tuple[str, str], int] = {}
    for run in runs:
        for name in dict.fromkeys((h.evaluator, h.figure) for h in headlines(run)):
            counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: (counts[name], name == ("linear", "top1")), default=None)


def headline_of(run: RunFiles, name: tuple[str, str] | None) -> Headline | None:
    """Return the run's accuracy of that name; if there are several, the one measured at the most epochs."""
    mine = [h for h in headlines(run) if (h.evaluator, h.figure) == name]
    return max(mine, key=lambda h: len(h.epochs), default=None)


def without_labels_of(run: RunFiles, name: str) -> WithoutLabels | None:
    """Return the run's figure of that name; if there are several, the one measured at the most epochs."""
    mine = [f for f in without_labels(run) if f.name == name]
    return max(mine, key=lambda f: len(f.epochs), default=None)


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front of (cost, accuracy) pairs, in order of increasing cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def _accuracy(record: Record, figure: str) -> Accuracy:
    low, high = (record.get(f"{figure}_{end}") for end in ("low", "high"))
    whole = is_number(low) and is_number(high)
    return Accuracy(record.get("epoch", 0), record[figure], low if whole else None, high if whole else None)


def _is_fraction(record: Record, name: str) -> bool:
    return name.rpartition("_")[2] in ("top1", "top5") or f"{name}_low" in record


def _formatted(record: Record, name: str, value: Any) -> str:
    if not _is_fraction(record, name):
        return f"{name} {LABEL_FREE[name].text(value) if name in label_free(record) else format(value, '.4g')}"
    interval = _accuracy(record, name)
    bounds = "" if interval.low is None else f" ({percent(interval.low)} to {percent(interval.high or 0)})"
    return f"{name} {percent(value)}{bounds}"
