"""Charts as SVG in the colours of the page, and files of the run embedded as data: URLs.

matplotlib draws the charts. Text that comes from data is not written into them but, escaped, into the page itself, so
that names of any script and length are displayed well, and colours follow the page's light or dark scheme.
"""

import base64
import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from markupsafe import Markup

from sslkit.runs.fields import is_number

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7a3db8", "#5f6b7a")
"""Distinguishable with colour blindness (Okabe and Ito 2008, darkened); the page defines light and dark shades."""
DASHES = ("-", "--", ":", "-.")
TEXT, LINE = "#010101", "#020202"
POINTS = 300
"""Maximum number of points of a curve; curves with more are thinned, without visible loss, to keep the page small."""
LARGE = 300_000
"""Bytes of a picture above which it is scaled down and compressed."""
WIDEST = 1600
"""Maximum width in pixels of a picture that is scaled down."""
ROWS = 200
"""Maximum number of rows of a table file that are shown."""


@dataclass(frozen=True)
class Series:
    """A curve, with an interval if it has one."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True)
class Point:
    """A run in a chart of accuracy against cost."""

    number: int
    """The number of its row in the table."""
    name: str
    cost: float
    accuracy: float

    @property
    def place(self) -> tuple[float, float]:
        return self.cost, self.accuracy


@dataclass(frozen=True)
class Chart:
    """A drawing and the points on it that can be read off: the page shows the one nearest to a pointer or key press."""

    title: str
    alt: str
    svg: Markup
    points: list[tuple[float, float, str]]
    """(x, y, text) of each point; x and y are fractions of width and height from the top left."""
    legend: list[tuple[str, str]] = field(default_factory=list)
    """(CSS style of the swatch, name) of each entry."""


@dataclass(frozen=True)
class Picture:
    """An embedded image file."""

    address: str
    alt: str
    width: int
    height: int


def curves(title: str, series: Sequence[Series], *, percent: bool = False) -> Chart:
    """Draw curves over epochs."""
    shown = [_thinned(one) for one in series]
    figure, axes = _figure()
    for number, one in enumerate(shown):
        colour, dash = PALETTE[number % len(PALETTE)], DASHES[number // len(PALETTE) % len(DASHES)]
        marker = "o" if len(one.x) <= 30 else None
        axes.plot(one.x, one.y, dash, color=colour, linewidth=1.6, marker=marker, markersize=3.5)
        if one.low and one.high:
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    svg, place = _finished(figure, axes, title, percent)
    points = [(*place(x, y), _reading(one, x, y, percent)) for one in shown for x, y in zip(one.x, one.y)]
    alt = "; ".join(_ends(one, percent) for one in series)
    legend = [(_swatch(n), one.name) for n, one in enumerate(series)] if len(series) > 1 else []
    return Chart(title, f"{title} over epochs. {alt}.", svg, points, legend)


def scatter(title: str, unit: str, points: Sequence[Point], front: list[tuple[float, float]]) -> Chart:
    """Draw accuracy against cost; a line joins the Pareto front."""
    figure, axes = _figure()
    costs = [point.cost for point in points]
    if min(costs) > 0 and max(costs) > 20 * min(costs):
        axes.set_xscale("log")
    axes.plot(*zip(*front), color=PALETTE[1], linewidth=1.2, drawstyle="steps-post", zorder=1)
    for point in points:
        face = PALETTE[0] if point.place in front else "none"
        axes.plot(*point.place, "o", markersize=7, color=PALETTE[0], markerfacecolor=face)
        above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "color": TEXT}
        axes.annotate(str(point.number), point.place, **above)
    axes.margins(0.12, 0.2)
    axes.set_xlabel(unit)
    svg, place = _finished(figure, axes, title, percent=True)
    texts = [f"{p.name}: {100 * p.accuracy:.1f} %, {p.cost:.4g} {unit}" for p in points]
    best = ", ".join(point.name for point in points if point.place in front)
    alt = f"{title}. {'; '.join(texts)}. No other run is better in both (Pareto front, filled): {best}."
    legend = [("", f"{point.number} {point.name}") for point in points]
    return Chart(title, alt, svg, [(*place(*p.place), text) for p, text in zip(points, texts)], legend)


def picture(path: Path, alt: str) -> Picture | None:
    """Embed an image, scaled down if it is large; None if it is missing or damaged."""
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF")) as image:
            image.load()
            kind, size = str(image.format).lower(), image.size
            if len(data) > LARGE:
                image.thumbnail((WIDEST, 4 * WIDEST))
                kind, size, data = "webp", image.size, _webp(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return Picture(_address(f"image/{kind}", data), alt, *size)


def table(path: Path) -> list[list[str]] | None:
    """Read the first rows of a CSV file; None if it has none."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            rows = [row for row, _ in zip(csv.reader(file), range(ROWS + 1))]
    except (OSError, csv.Error):
        return None
    return rows or None


def explorer(path: Path) -> dict[str, Any] | None:
    """Read the points of an embedding.json and embed its sprite; None if its entries are inconsistent."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        maps = {name: _normalised(found[name]) for name in ("tsne", "pca") if found.get(name)}
        labels, classes = _labels(found["labels"]), [str(name) for name in found["classes"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if labels is None and maps and not classes:
        # Images without labels are all drawn alike.
        labels = [0] * max(map(len, maps.values()))
    elif not labels or not all(0 <= n < len(classes) for n in labels):
        return None
    if not maps or not all(len(points) == len(labels) for points in maps.values()):
        return None
    return {"maps": maps, "labels": labels, "classes": classes, "sprite": _sprite(path, found.get("sprite"))}


def _labels(found: Any) -> list[int] | None:
    return None if found is None else [int(n) for n in found]


def _sprite(path: Path, about: Any) -> dict[str, Any] | None:
    if not isinstance(about, dict) or not all(is_number(about.get(k)) and about[k] > 0 for k in ("size", "columns")):
        return None
    file = (path.parent / str(about.get("file"))).resolve()
    if file.parent != path.resolve().parent:
        # The sprite is next to the JSON file; no other picture may be embedded.
        return None
    sheet = picture(file, "")
    if sheet is None:
        return None
    return {"file": file.name, "address": sheet.address, "columns": int(about["columns"])}


def _normalised(points: Any) -> list[list[float]]:
    """Scale points into the unit square, rounded to a screen's resolution. Raises ValueError if they are not points."""
    xs, ys = ([float(point[i]) for point in points] for i in (0, 1))
    if not all(map(is_number, (*xs, *ys))):
        raise ValueError("not all points are finite")
    side = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    return [[round((x - min(xs)) / side, 4), round((y - min(ys)) / side, 4)] for x, y in zip(xs, ys)]


def _figure() -> Any:
    """Create a small chart, whose text stays readable at the width of a phone's screen."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 11}):
        figure = Figure(figsize=(4.6, 2.7))
        axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=LINE, labelcolor=TEXT)
    axes.xaxis.label.set_color(TEXT)
    axes.grid(axis="y", color=LINE, alpha=0.15)
    return figure, axes


def _finished(figure: Any, axes: Any, title: str, percent: bool) -> tuple[Markup, Any]:
    """Return the SVG and a function from data coordinates to fractions of its size; `title` makes its ids unique."""
    import matplotlib as mpl
    from matplotlib.layout_engine import TightLayoutEngine
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=max(axes.get_xlim()) > 3))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    # Once, by hand: a figure that has a layout engine of its own is measured three times and drawn twice.
    TightLayoutEngine(pad=0.3).execute(figure)
    drawn = io.StringIO()
    # Keep text as text: it uses the page's font, and can be searched and read aloud.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    box = figure.bbox

    def place(x: float, y: float) -> tuple[float, float]:
        left, bottom = axes.transData.transform((x, y))
        return round(left / box.width, 4), round(1 - bottom / box.height, 4)

    return _page_svg(drawn.getvalue()), place


def _page_svg(svg: str) -> Markup:
    """Convert an SVG file for the page: without header, in the page's colours, without ids shared between charts."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r' id="(?!p[0-9a-f]{10}"|m[0-9a-f]{10}")[^"]*"', "", body)
    body = re.sub(r"font: [^;\"]*;?", "", body)
    body = body.replace(TEXT, "var(--fg)").replace(LINE, "var(--muted)")
    for number, colour in enumerate(PALETTE):
        body = body.replace(colour, f"var(--s{number})")
    return Markup(body.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1))


def _swatch(number: int) -> str:
    dash = ("solid", "dashed", "dotted", "double")[number // len(PALETTE) % len(DASHES)]
    return f"border-top: 3px {dash} var(--s{number % len(PALETTE)})"


def _thinned(series: Series) -> Series:
    step = -(-len(series.x) // POINTS)
    if step == 1:
        return series
    # Count from the end, so that the last value is kept.
    keep = range(len(series.x) - 1, -1, -step)[::-1]
    rows = [None if v is None else [v[i] for i in keep] for v in (series.x, series.y, series.low, series.high)]
    return Series(series.name, cast(list[float], rows[0]), cast(list[float], rows[1]), rows[2], rows[3])


def _reading(series: Series, x: float, y: float, percent: bool) -> str:
    return f"{series.name}, epoch {x:g}: {_value(y, percent)}"


def _ends(series: Series, percent: bool) -> str:
    """Describe a curve by its first and last value."""
    first, last = (f"{_value(series.y[i], percent)} at epoch {series.x[i]:g}" for i in (0, -1))
    return f"{series.name}: {first}, {last}" if len(series.x) > 1 else f"{series.name}: {last}"


def _value(y: float, percent: bool) -> str:
    return f"{100 * y:.1f} %" if percent else f"{y:.4g}"


def _webp(image: Any) -> bytes:
    out = io.BytesIO()
    image.convert("RGBA" if "A" in image.getbands() else "RGB").save(out, "WEBP", quality=85)
    return out.getvalue()


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
