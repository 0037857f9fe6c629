"""Trackers: where a run's metrics go besides its own folder, such as TensorBoard. The folder stays the truth.

This is itself a plugin: it hears of runs through the three hooks for them, and tells the trackers that a run names.
"""

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sslkit.errors import UserError
from sslkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from sslkit.runs.run import Run

Metrics = dict[str, float]

_open: dict[Path, list["Tracker"]] = {}
"""Trackers of the runs that are training in this process, by run directory."""


class Tracker:
    """Base of every tracker: one object a run, made before its first step, in its first process alone."""

    package: ClassVar[str] = ""
    """What it imports; looked for before training."""
    install: ClassVar[str] = ""
    """The command that brings it."""

    def __init__(self, run: "Run") -> None:
        """Raise whatever is wrong now: no step has been trained. `run.metrics` is empty, or a resumed run's."""
        self.run = run

    def log(self, step: int, metrics: Metrics) -> None:
        """Fresh figures; of one step there can be several, those of an evaluation among them."""
        raise NotImplementedError(f"{type(self).__name__} logs nothing")

    def finish(self, error: BaseException | None) -> None:
        """The run has ended; `error` is None, or what ended it (a KeyboardInterrupt, where it can be resumed)."""


def check(names: Iterable[str]) -> None:
    """Raises UserError for a tracker that is not known, or whose package is not installed."""
    for name in names:
        tracker = _find(name)
        if tracker.package and find_spec(tracker.package) is None:
            raise UserError(
                f"trackers: {name} needs {tracker.package}, which is not installed; get it with: {tracker.install}"
            )


@hookimpl
def run_started(run: "Run") -> None:
    opened = _open[run.path] = []
    for name in run.config.trackers:
        try:
            opened.append(_find(name)(run))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"trackers: {name} cannot start ({type(error).__name__}: {error}); mend that, or leave it out"
            ) from error


@hookimpl
def run_logged(run: "Run", step: int, metrics: dict[str, Any]) -> None:
    numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and k != "step"}
    for tracker in list(_open.get(run.path, ())):
        _or_without(run, tracker, partial(tracker.log, step, numbers))


@hookimpl
def run_finished(run: "Run", error: BaseException | None) -> None:
    for tracker in _open.pop(run.path, []):
        _or_without(run, tracker, partial(tracker.finish, error))


def _find(name: str) -> type[Tracker]:
    from sslkit import plugins

    try:
        result: type[Tracker] = plugins.find("trackers", name)
        return result
    except UserError as error:
        raise UserError(f"trackers: {error} (tensorboard, wandb and mlflow are in sslkit-trackers)") from error


def _or_without(run: "Run", tracker: Tracker, tell: Callable[[], None]) -> None:
    """A tracker that fails is told once and left out: training is worth more, and the run's folder has it all."""
    try:
        tell()
    except Exception as error:
        name = type(tracker).__name__
        warnings.warn(f"tracker {name} fails and is left out from here on: {error}", stacklevel=2)
        if tracker in _open.get(run.path, ()):
            _open[run.path].remove(tracker)
