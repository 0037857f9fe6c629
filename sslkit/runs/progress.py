"""Progress of a run, which its weights carry: a run that is not finished is called unfinished."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.machine.files import UNREADABLE
from sslkit.machine.tensors import read_header
from sslkit.runs.checkpoint import find_checkpoints, read_state

BACKBONE, CHECKPOINTS = "backbone.safetensors", "checkpoints"


@dataclass(frozen=True)
class Progress:
    """Training that the weights of a run have seen."""

    epoch: float | None
    """Epochs; None if there are no weights, or if nothing says how many they have seen."""
    step: int | None
    """Optimizer steps; None if unknown."""
    planned: int | None
    """Epochs of the whole run; None if unknown."""

    @property
    def finished(self) -> bool:
        return self.epoch is not None and self.planned is not None and self.epoch >= self.planned

    def __str__(self) -> str:
        """The epochs, and that the run is unfinished if it is: 3 of 50, unfinished."""
        if self.finished:
            return f"{self.epoch:g}"
        planned = "an unknown number" if self.planned is None else self.planned
        return f"{self.epoch or 0:g} of {planned}, unfinished"


def progress(folder: Path, planned: int | None, metrics: Sequence[dict[str, Any]]) -> Progress:
    """Return how far the weights of the run in `folder` have been trained.

    The header of the backbone file says so. The file of an earlier version is as old as the newest checkpoint, and
    without one as old as the metrics are.
    """
    epoch, step = _of_header(folder / BACKBONE) or _of_checkpoint(folder / CHECKPOINTS) or _of_metrics(metrics)
    return Progress(epoch, step, planned)


def _of_header(file: Path) -> tuple[float, int] | None:
    try:
        header = read_header(file)
        return float(header["epoch"]), int(header["step"])
    except UNREADABLE:
        return None


def _of_checkpoint(folder: Path) -> tuple[float, int] | None:
    try:
        state = read_state(find_checkpoints(folder)[-1])
        return float(state["epoch"]), int(state["step"])
    except UNREADABLE:
        return None


def _of_metrics(metrics: Sequence[dict[str, Any]]) -> tuple[float | None, int | None]:
    return (metrics[-1]["epoch"], metrics[-1]["step"]) if metrics else (None, None)
