"""Trackers, which send a run's metrics to other tools such as TensorBoard, in addition to the run directory.

This module is itself a plugin: it implements the three hooks of runs, and forwards them to the trackers of each run.
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
    """Base class of trackers: one object per run, created before its first step, only in the first process."""

    package: ClassVar[str] = ""
    """The package that the tracker imports; its presence is checked before training."""
    install: ClassVar[str] = ""
    """The command that installs the package."""

    def __init__(self, run: "Run") -> None:
        """Set up, before the first step; raise if anything is wrong. `run.metrics` holds a resumed run's records."""
        self.run = run

    def log(self, step: int, metrics: Metrics) -> None:
        """Log new metrics; called several times for the same step if there are evaluations."""
        raise NotImplementedError(f"{type(self).__name__} logs nothing")

    def finish(self, error: BaseException | None) -> None:
        """Called at the end of a run. error: what ended it (KeyboardInterrupt if it can be resumed), or None."""


def check(names: Iterable[str]) -> None:
    """Raise UserError for a tracker that is unknown, or whose package is not installed."""
    for name in names:
        tracker = _find(name)
        if tracker.package and find_spec(tracker.package) is None:
            raise UserError(
                f"trackers: {name} needs {tracker.package}, which is not installed; install it with: {tracker.install}"
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
                f"trackers: {name} cannot start ({type(error).__name__}: {error}); fix that, or leave it out"
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


def _or_without(run: "Run", tracker: Tracker, call: Callable[[], None]) -> None:
    """Call a tracker; if it fails, warn once and drop it, because the run directory has all metrics anyway."""
    try:
        call()
    except Exception as error:
        name = type(tracker).__name__
        warnings.warn(f"tracker {name} failed and is disabled for the rest of the run: {error}", stacklevel=2)
        if tracker in _open.get(run.path, ()):
            _open[run.path].remove(tracker)
