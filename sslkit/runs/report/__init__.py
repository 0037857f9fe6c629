"""The report: one HTML page that holds everything of a run, or compares several, and needs nothing beside itself.

`results.py` finds the figures; `figures.py` draws and embeds; `build.py` puts the page together from `templates/`.
"""

from typing import TYPE_CHECKING

from sslkit.plugins import lazy_names

if TYPE_CHECKING:
    from sslkit.runs.report.build import write

__all__ = ["write"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"write": "sslkit.runs.report.build"},
)
