"""The report: one HTML page that holds everything of a run, or compares several, and needs nothing beside itself.

`read.py` reads run directories, damaged ones too; `results.py` finds the figures; `figures.py` draws and embeds;
`build.py` puts the page together from `templates/`; `views.py` keeps the first views of a run while it trains.
"""

from typing import TYPE_CHECKING

from sslkit.lazy import lazy_names

if TYPE_CHECKING:
    from sslkit.report.build import write
    from sslkit.report.views import keep_first_views

__all__ = ["keep_first_views", "write"]

__getattr__ = lazy_names(
    __name__,
    {"write": "sslkit.report.build", "keep_first_views": "sslkit.report.views"},
)
