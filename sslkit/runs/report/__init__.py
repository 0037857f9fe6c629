"""The report: one self-contained HTML page about a run, or a comparison of several.

`results.py` selects the results, `costs.py` the costs; `figures.py` draws charts and embeds files; `build.py` renders
the page from `templates/`.
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
