"""Drawing for evaluators: PNGs that are legible on dark and on light pages, and that no class name can break.

Colour is never the only cue: right and wrong have signs, curves and classes have markers of their own.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from numpy.typing import NDArray

from sslkit.machine import atomic

PAPER, INK, FAINT = "#fafafa", "#1a1a1a", "#595959"
RIGHT, WRONG = "#006b4f", "#b33c00"
"""Green and vermilion, which differ in lightness for colour-blind readers."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#000000", "#7a4fbf", "#8c2d04", "#666666")
"""After Okabe and Ito 2008, darkened where they would be too faint on white."""
MARKERS = "osD^vP*XhH<>pd"
CELL = 1.15
"""Width of a column of images, in inches."""
THUMBNAIL = 96
"""Side in pixels of an image in a table."""
SPELT_OUT = 20
"""Largest number of classes for which each has its own count, tick or legend entry."""


@dataclass(frozen=True)
class Cell:
    """One image of a table."""

    pixels: NDArray[np.uint8]
    """[H, W, 3]."""
    caption: str | None = None
    right: bool | None = None
    """True or False marks the image as right or wrong; None: no mark."""


def place(subject: Any, name: str, alt: str) -> Path | None:
    """Path that the subject assigns to a file with that name and text alternative; None: no files are wanted."""
    attach = getattr(subject, "attach", None)
    return attach(name, alt) if attach else None


def label(name: str, limit: int = 22) -> str:
    """Make a name from the data drawable: one line, at most `limit` characters, □ for those without a glyph."""
    glyphs = _glyphs()
    plain = "".join(" " if unicodedata.category(c)[0] in "ZC" else c if ord(c) in glyphs else "□" for c in name)
    line = " ".join(plain.split()) or "(nameless)"
    return line if len(line) <= limit else line[: limit - 1] + "…"


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def image_table(
    path: Path, rows: Sequence[Sequence[Cell]], row_names: Sequence[str], column_names: Sequence[str]
) -> None:
    """Draw images in rows and columns, with captions under them; ✓ and ✗ mark right and wrong ones."""
    names = max(_inches(label(name), 9) for name in row_names) / CELL + 0.2
    high = 1.24
    width, height = names + len(column_names), len(rows) * high + 0.3
    figure = _figure(CELL * width, CELL * height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for column, name in enumerate(column_names):
        _write(axes, names + column + 0.48, 0.2, name, ha="center", color=FAINT)
    for number, (row, name) in enumerate(zip(rows, row_names)):
        top = 0.3 + number * high
        _write(axes, names - 0.1, top + 0.48, label(name), ha="right", va="center", fontsize=9)
        for column, cell in enumerate(row):
            _draw_cell(axes, cell, names + column, top)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    _save(figure, path)


def _draw_cell(axes: Axes, cell: Cell, left: float, top: float) -> None:
    axes.imshow(cell.pixels, extent=(left, left + 0.96, top + 0.96, top), interpolation="nearest", zorder=1)
    mark = {True: "✓ ", False: "✗ ", None: ""}[cell.right]
    colour = {True: RIGHT, False: WRONG, None: INK}[cell.right]
    if cell.right is not None:
        style = "-" if cell.right else "--"
        axes.add_patch(Rectangle((left, top), 0.96, 0.96, fill=False, lw=2, ls=style, edgecolor=colour, zorder=2))
    text = mark + ("" if cell.caption is None else label(cell.caption, 14))
    _write(axes, left + 0.48, top + 1.12, text, ha="center", color=colour)


def heat_map(path: Path, counts: NDArray[np.int64], names: Sequence[str], across: str, down: str) -> None:
    """Draw counts [C, C], coloured by their share of the row; for up to 20 classes the counts are written in."""
    classes = len(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(3.2 + 0.45 * classes, 13)
    figure = _figure(side + 1, side)
    axes = figure.add_subplot()
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    step = -(-classes // (2 * SPELT_OUT))
    ticks = range(0, classes, step)
    size = 8 if classes <= SPELT_OUT else 6
    axes.set_xticks(
        ticks, [label(names[t]) for t in ticks], rotation=60, ha="right", rotation_mode="anchor", fontsize=size
    )
    axes.set_yticks(ticks, [label(names[t]) for t in ticks], fontsize=size)
    _plain((*axes.get_xticklabels(), *axes.get_yticklabels()))
    axes.set(xlabel=across, ylabel=down)
    if classes <= SPELT_OUT:
        for row, column in zip(*counts.nonzero()):
            colour = "white" if share[row, column] > 0.5 else INK
            _write(axes, column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    figure.colorbar(shown, ax=axes, label="share of the true class", fraction=0.045)
    _save(figure, path)


def curves(path: Path, x: Sequence[float], lines: Mapping[str, Sequence[float]], across: str, up: str) -> None:
    """Draw one curve per name, each with a colour and a marker; y is a fraction, drawn in per cent."""
    figure = _figure(7, 4.2)
    axes = figure.add_subplot()
    for number, (name, values) in enumerate(lines.items()):
        style = _style(number)
        axes.plot(x, 100 * np.asarray(values), label=label(name), lw=1.8, ms=5, **style)
    axes.set(xlabel=across, ylabel=f"{up}, %", ylim=(0, 100), xticks=x)
    axes.grid(color="#d9d9d9", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes)
    _save(figure, path)


def scatter(
    path: Path, panels: dict[str, NDArray[np.floating]], labels: NDArray[np.int64] | None, names: Sequence[str]
) -> None:
    """Draw points [N, 2] of several panels side by side; each class has a colour and a marker. None: no labels."""
    figure = _figure(5.2 * len(panels) + 1.6, 5.2)
    if labels is None:
        labels = np.zeros(max(map(len, panels.values())), np.int64)
    present = np.unique(labels)
    for number, (title, points) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for c in present:
            chosen = points[labels == c]
            looks = {"s": 16, "alpha": 0.75, "linewidths": 0, **_style(c)}
            axes.scatter(chosen[:, 0], chosen[:, 1], label=label(names[c]) if names else None, **looks)
        axes.set(title=title, xticks=[], yticks=[])
    if names and len(present) <= SPELT_OUT:
        _legend(axes)
    _save(figure, path)


def overlaid(image: NDArray[np.uint8], heat: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Overlay a map [H, W] >= 0 in colours on the image [H, W, 3] in grey; its 99th percentile is the brightest."""
    from matplotlib import colormaps

    scaled = np.clip(heat / max(float(np.percentile(heat, 99)), 1e-12), 0, 1)[..., None]
    grey = image.mean(2, keepdims=True).repeat(3, 2) / 255
    colour = colormaps["inferno"](scaled[..., 0])[..., :3]
    result: NDArray[np.uint8] = (255 * (0.35 * grey + 0.65 * ((1 - scaled) * grey * 0.6 + scaled * colour))).astype(
        np.uint8
    )
    return result


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Create a figure of this size in inches, without pyplot, which keeps figures alive and needs a display."""
    figure = Figure(figsize=(width, height), facecolor=PAPER, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _style(number: int) -> dict[str, Any]:
    """Colour and marker of class or curve `number`; pairs repeat after 140."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
    }


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write `text`, which is a constant or has been passed through `label`."""
    looks: dict[str, Any] = {"color": INK, "fontsize": 7, "parse_math": False}
    axes.text(x, y, text, **looks | style)


def _inches(text: str, points: float) -> float:
    """Width of a line of text in that font size, in inches."""
    # Dollar signs would be parsed as a formula.
    return TextPath((0, 0), text.replace("$", "n"), size=points).get_extents().width / 72


def _legend(axes: Axes) -> None:
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    _plain(legend.get_texts())


def _plain(texts: Iterable[Any]) -> None:
    """Prevent dollar signs in names from being parsed as formulas."""
    for text in texts:
        text.set_parse_math(False)


def _save(figure: Figure, path: Path) -> None:
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
