"""Disk space of a run: expected before it, checked before its first step, and watched at each checkpoint."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from sslkit.config.run import RunConfig
from sslkit.errors import UserError
from sslkit.machine.sizes import free_at, in_words, size_of
from sslkit.runs.display import Display
from sslkit.runs.run import Run
from sslkit.training.setup import TrainingSetup

MOMENTS = {"sgd": 1, "lars": 1}
"""Tensors that an optimizer keeps for each parameter; others keep two, as Adam does, or fewer."""


def expected_bytes(setup: TrainingSetup) -> int:
    """Return the bytes that a run keeps in its folder when it is finished, pictures and records apart."""
    checkpoints = kept_checkpoints(setup.config) * checkpoint_bytes(setup)
    return checkpoints + _bytes(setup.method.exported.state_dict().values())


def checkpoint_bytes(setup: TrainingSetup) -> int:
    """Return the bytes of one checkpoint: the method's weights, and what the optimizer keeps for each parameter."""
    trained = [p for group in setup.optimizer.param_groups for p in group["params"]]
    moments = MOMENTS.get(setup.config.optimizer.name, 2)
    return _bytes(setup.method.state_dict().values()) + moments * _bytes(trained)


def kept_checkpoints(config: RunConfig) -> int:
    """Return how many checkpoints a finished run has kept, at most."""
    keep = config.keep_checkpoints
    return keep.last + keep.best + (config.epochs // keep.every if keep.every else 0)


def check_room(run: Run, setup: TrainingSetup) -> None:
    """Raise UserError if the run's checkpoints will not fit, those that it has already counted as room."""
    # A checkpoint is written whole before it replaces another.
    needed = expected_bytes(setup) + checkpoint_bytes(setup) - size_of(run.path)
    free = free_at(run.path)
    if needed > free:
        raise UserError(
            f"the run is expected to write {in_words(needed)} to {run.path}, where {in_words(free)} are free; make "
            "room, keep fewer (keep_checkpoints.last, keep_checkpoints.every), or choose another place with out="
        )


def warn_if_short(run: Run, display: Display) -> None:
    """Warn, once a run, if there is no room for another two checkpoints like the last one."""
    size, free = size_of(run.checkpoints[-1]), free_at(run.path)
    if free < 2 * size:
        display.warn_once(
            "disk", f"{in_words(free)} are free at {run.path}, and a checkpoint takes {in_words(size)}: make room soon"
        )


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
