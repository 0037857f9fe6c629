"""The verdict on a run: whether pre-training was worth it, and the setting most likely to mend it if not."""

from collections.abc import Sequence
from math import ceil
from statistics import fmean
from typing import Any

from sslkit.nn.collapse import collapse_warning
from sslkit.runs.label_free import LABEL_FREE
from sslkit.runs.records import FLOORS, floors_of

Record = dict[str, Any]

FEWEST_STEPS = 500
"""Optimizer steps below which the methods here were never seen to beat raw pixels (docs/auto-settings.md)."""
MOVED = 0.01
"""Share of its first value by which a loss must have changed to count as moved."""


def verdict(metrics: Sequence[Record], evaluations: Sequence[Record], width: int | None) -> list[str]:
    """Return a sentence for each sign that a finished run did not learn, the last one with its mend; [] if none.

    width: of the features; None if unknown.
    """
    last = _last_of_each(evaluations)
    judged = [r for r in last if "top1" in r]
    # Without labels, view retrieval takes the place of accuracies: a collapse lowers it, unlike the other figures.
    figure = "top1" if judged else "view_retrieval"
    below = [sentence for record in judged or last if (sentence := _below_a_floor(record, figure))]
    collapsed, still, few = _collapsed(metrics, width), _loss_stood_still(metrics), _too_few_steps(metrics)
    signs = [*below, *filter(None, (collapsed, still, few))]
    if not signs:
        return []
    return [*signs, _mend(bool(collapsed), bool(still), few is not None, metrics)]


def _last_of_each(evaluations: Sequence[Record]) -> list[Record]:
    last = {r["evaluator"]: r for r in evaluations if r.get("during_run") and r.get("epoch")}
    return list(last.values())


def _below_a_floor(record: Record, figure: str) -> str | None:
    found, floors = record.get(figure), floors_of(record, figure)
    beaten = {FLOORS[name]: value for name, value in floors.items() if found is not None and found <= value}
    if not beaten:
        return None
    names = " and ".join(f"{name} ({100 * value:.1f} %)" for name, value in beaten.items())
    title = record["evaluator"] if figure == "top1" else LABEL_FREE[figure].title
    return f"{title}: {100 * record[figure]:.1f} % is no better than {names}"


def _collapsed(metrics: Sequence[Record], width: int | None) -> str | None:
    std, rank = (metrics[-1].get(key) if metrics else None for key in ("feature_std", "effective_rank"))
    if std is None or rank is None or width is None:
        return None
    warning = collapse_warning(std, rank, width)
    return warning and warning.partition(";")[0]


def _loss_stood_still(metrics: Sequence[Record]) -> str | None:
    losses = [r["loss"] for r in metrics if isinstance(r.get("loss"), int | float)]
    if len(losses) < 2:
        return None
    tenth = ceil(len(losses) / 10)
    first, last = fmean(losses[:tenth]), fmean(losses[-tenth:])
    if abs(last - first) > MOVED * max(abs(first), 1e-9):
        return None
    return f"the loss has not moved: {first:.4g} at the beginning, {last:.4g} at the end"


def _too_few_steps(metrics: Sequence[Record]) -> str | None:
    steps = metrics[-1]["step"] if metrics else 0
    return f"{steps} optimizer steps are too few to learn from images" if steps < FEWEST_STEPS else None


def _mend(collapsed: bool, still: bool, few: bool, metrics: Sequence[Record]) -> str:
    if few and metrics:
        step, epoch = metrics[-1]["step"], metrics[-1]["epoch"]
        epochs = ceil(max(epoch, 1) * 4 * FEWEST_STEPS / max(step, 1))
        return f"most likely to help: epochs={epochs}, or a smaller batch_size"
    if collapsed:
        return "most likely to help: a lower optimizer.lr, or another method (method=vicreg does not collapse)"
    if still:
        return "most likely to help: another optimizer.lr, ten times lower or higher"
    return "most likely to help: more epochs, or views that keep more of the image (augment.crop.scale=[0.3,1.0])"
