"""Evaluate every kept checkpoint of a run: accuracy over epochs (Sonawane et al. 2021, Figures 1 and 2)."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.config.base import Choice
from sslkit.errors import UserError
from sslkit.evaluation.targets import RecordKeeper, Target, open_target
from sslkit.machine.atomic import replacing
from sslkit.machine.files import reading
from sslkit.nn.modes import own_random
from sslkit.runs.records import is_accuracy, settings_of
from sslkit.runs.run import Run

if TYPE_CHECKING:
    from sslkit.runs.display import Display


@dataclass(frozen=True)
class EpochCurve:
    """One accuracy of one evaluator over epochs."""

    evaluator: str
    figure: str
    """Name of the accuracy in the records, such as top1."""
    records: list[dict[str, Any]]
    """Records that contain it, in order of epochs."""

    @property
    def last(self) -> dict[str, Any]:
        """The record of the last epoch, which is not selected on test labels."""
        return self.records[-1]

    @property
    def best(self) -> dict[str, Any]:
        """The record of the highest accuracy, the earliest of equals; selected on test labels: report it as such."""
        return max(self.records, key=lambda record: record[self.figure])


def evaluate_checkpoints(target: str | Path, words: Iterable[str], display: "Display") -> list[dict[str, Any]]:
    """Return the records of all kept epochs of a run, in order of epochs, and measure missing ones.

    Implements `sslkit evaluate RUN --all-checkpoints`. New records are appended to evaluations.jsonl one by one, so
    that a second call continues where the first one was stopped. Draws RUN/figures/checkpoints.png. Raises UserError
    if the target is not a run.
    """
    opened = open_target(target, words, display)
    if opened.run is None:
        raise UserError(f"{target} is not a run; only runs have checkpoints")
    kept = epoch_checkpoints(opened.run)
    if not kept:
        raise UserError(
            f"{target} has no checkpoint at the end of an epoch; runs keep one every checkpoint_every epochs"
        )
    keeper, known = RecordKeeper(opened), opened.run.evaluations
    for epoch, path in kept.items():
        for record in _measure_missing(opened, opened.run, epoch, path, known):
            display.evaluation(record)
            keeper.keep(record)
            known.append(record)
    records = [r for epoch in [0, *kept] for r in _existing(opened, known, epoch)]
    keeper.conclude(display)
    if opened.folder:
        draw(records, opened.folder / "figures" / "checkpoints.png")
    return records


def epoch_checkpoints(run: Run) -> dict[int, Path]:
    """Return epoch -> folder of each kept checkpoint at the end of an epoch, in order."""
    matches = [(re.fullmatch(r"epoch-(\d+)", path.name), path) for path in run.checkpoints]
    return {int(match[1]): path for match, path in matches if match}


def epoch_curves(records: list[dict[str, Any]]) -> list[EpochCurve]:
    """Return the curve over epochs of every top-1 accuracy in the records (top1, semi_1_top1, ...)."""
    names = dict.fromkeys((r["evaluator"], k) for r in records for k in r if is_accuracy(k) and k.endswith("top1"))
    return [EpochCurve(e, k, [r for r in records if r["evaluator"] == e and k in r]) for e, k in names]


def _measure_missing(
    opened: Target, run: Run, epoch: int, path: Path, known: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the record of each evaluator that is not among the `known` ones of that epoch."""
    measured = {r["evaluator"] for r in _existing(opened, known, epoch)}
    todo = [choice for choice in opened.evaluators if choice.name not in measured]
    if not todo:
        return
    step = _load(opened, path)
    newest = path == run.checkpoints[-1]
    about = {"head": lambda: opened.saved_head(path), "folder": opened.folder if newest else None}
    for found in opened.records(todo, **about):
        yield {"epoch": epoch, "step": step, "during_run": False} | found


def _existing(opened: Target, records: Iterable[dict[str, Any]], epoch: int) -> list[dict[str, Any]]:
    """Return the newest record of each evaluator at that epoch with the same settings, images and seed."""
    wanted = {choice.name: _identity(choice, opened) for choice in opened.evaluators}
    found = {}
    for record in records:
        name = record["evaluator"]
        same = {k: record.get(k) for k in ("settings", "data", "seed")} == wanted.get(name)
        if record["epoch"] == epoch and same:
            found[name] = record
    return [found[name] for name in wanted if name in found]


def _identity(choice: Choice, opened: Target) -> dict[str, Any]:
    return {"settings": settings_of(choice), "data": opened.stores.protocol, "seed": opened.config.seed}


def _load(opened: Target, path: Path) -> int:
    """Load the backbone's weights from a checkpoint; return the checkpoint's step."""
    from sslkit.methods.build import build_method
    from sslkit.runs.checkpoint import load_checkpoint

    with reading(path, "delete it to leave it out"):
        checkpoint = load_checkpoint(path)
    with own_random(opened.config.seed):
        method = build_method(opened.config, opened.stores)
    method.load_state_dict(checkpoint.model)
    opened.backbone.load_state_dict(method.exported.state_dict())
    return checkpoint.step


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Plot the accuracies over epochs with their 95 % intervals to a PNG file; do nothing if there is none."""
    lines = epoch_curves(records)
    if not lines:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for line, marker in zip(lines, "osD^vP*X" * len(lines)):
        _draw_epoch_curve(axes, line, marker)
    axes.set(xlabel="epochs of pre-training", ylabel="test accuracy (%)", title="Accuracy over epochs, 95 % intervals")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_epoch_curve(axes: Any, line: EpochCurve, marker: str) -> None:
    epochs = [r["epoch"] for r in line.records]
    values, low, high = ([100 * r[line.figure + end] for r in line.records] for end in ("", "_low", "_high"))
    [drawn] = axes.plot(epochs, values, marker=marker, label=f"{line.evaluator} {line.figure}")
    axes.fill_between(epochs, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
