"""Runs on disk and their presentation: directory, checkpoints, records, energy, trackers, display, report."""

from typing import TYPE_CHECKING

from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.runs.checkpoint import Checkpoint
    from sslkit.runs.directory import RunFiles, read_run
    from sslkit.runs.display import Display
    from sslkit.runs.run import Run
    from sslkit.runs.trackers import Tracker

__all__ = ["Checkpoint", "Display", "Run", "RunFiles", "Tracker", "read_run"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Checkpoint": "sslkit.runs.checkpoint",
        "Display": "sslkit.runs.display",
        "Run": "sslkit.runs.run",
        "RunFiles": "sslkit.runs.directory",
        "Tracker": "sslkit.runs.trackers",
        "read_run": "sslkit.runs.directory",
    },
)
