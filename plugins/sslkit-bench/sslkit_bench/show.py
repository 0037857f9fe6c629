"""Present a result: tables for the terminal, a chart, and files."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.machine import atomic
from sslkit.runs.report.figures import PALETTE
from sslkit_bench.contest import Result, file_stem

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

STYLE: Any = {"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "sslkit"}
"""Keep text as text; the salt makes the file reproducible."""
TRAINING, VIEWS = "training", "views alone"
KINDS = {"views": VIEWS, "kornia": VIEWS, "torchvision": VIEWS}
"""Contestants that only make views; all others train."""


def as_tables(result: Result) -> "Group":
    """Return tables of contestants, stages and ratios, each with median, quartiles and n."""
    from rich.console import Group
    from rich.text import Text

    heading = f"{result['what']}, {result['execution']}, on {result['device_name']}"
    parts: list[Any] = [Text(heading, style="bold"), _contestants(result)]
    parts += [Text(), _stages(result)] if result["stages"] else []
    parts += [Text(), _ratios(result)] if result["ratios"] else []
    parts += [Text(f"{name} did not take part: {why}") for name, why in result["absent"].items()]
    return Group(*parts)


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number in (0, len(columns) - 1) else "right", overflow="fold")
    return table


def _contestants(result: Result) -> "Table":
    table = _table("", "images/s", "quartiles", "ms/step", "n × steps", "notes")
    for name, figures in result["contestants"].items():
        rate, seconds = figures["images_per_second"], figures["seconds"]
        n = f"{rate['n']} × {figures['steps_a_turn']}"
        table.add_row(name, f"{rate['median']:.0f}", _quartiles(rate, 1), _ms(seconds), n, figures["note"])
    return table


def _stages(result: Result) -> "Table":
    table = _table("stage in isolation", "ms/step", "quartiles", "n × steps", "notes")
    for name, stage in result["stages"].items():
        seconds = stage["seconds"]
        n = f"{seconds['n']} × {stage['steps_a_turn']}"
        table.add_row(name, _ms(seconds), _quartiles(seconds, 1000), n, stage["note"])
    return table


def _ratios(result: Result) -> "Table":
    table = _table("ratio", "median", "quartiles", "n", "meaning (paired by round)")
    for name, ratio in result["ratios"].items():
        table.add_row(name, f"{ratio['median']:.3g}", _quartiles(ratio, 1), str(ratio["n"]), ratio["means"])
    return table


def _ms(seconds: Result) -> str:
    return f"{1000 * seconds['median']:.3g}"


def _quartiles(summary: Result, scale: float) -> str:
    return f"{scale * summary['q1']:.3g} to {scale * summary['q3']:.3g}"


def write(result: Result, folder: Path) -> list[Path]:
    """Write <device>-<method>-<backbone>-<size>.json and .svg atomically; return the paths."""
    stem = file_stem(result)
    data, chart, drawing = folder / f"{stem}.json", folder / f"{stem}.svg", as_svg(result)
    atomic.write_json(data, result)
    atomic.write_text(chart, drawing)
    return [data, chart]


def as_svg(result: Result) -> str:
    """Return an SVG with bars of images/s and quartiles, for training and for views, and the stages of a step."""
    groups = [(kind, names) for kind, names in _groups(result) if names]
    heights = [len(names) + 1.2 for _, names in groups] + [2.6] * bool(result["stages"])
    figure, axes = panels(heights, f"{result['what']}, {result['execution']}\n{result['device_name']}")
    for place, (kind, names) in zip(axes, groups):
        rates = {name: result["contestants"][name]["images_per_second"] for name in names}
        bars(place, f"{kind}, images/s: median and quartiles", rates, "{:,.0f}")
    if result["stages"]:
        _draw_stages(axes[-1], result["stages"])
    return svg_of(figure)


def panels(heights: list[float], title: str) -> tuple[Any, list[Any]]:
    """Return (figure, axes from top to bottom). heights: of the axes, in units of a bar."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.42 * sum(heights) + 0.6), layout="constrained")
        figure.suptitle(title, fontsize=11)
        axes = figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    return figure, list(axes)


def svg_of(figure: Any) -> str:
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _groups(result: Result) -> Iterator[tuple[str, list[str]]]:
    for kind in (TRAINING, VIEWS):
        yield kind, [name for name in result["contestants"] if KINDS.get(name, TRAINING) == kind]


def bars(axes: Any, title: str, summaries: dict[str, Result], style: str) -> None:
    """Draw a bar for each median, with its quartiles, and next to it the median in the format `style`."""
    medians = [each["median"] for each in summaries.values()]
    spread = [[each["median"] - each["q1"], each["q3"] - each["median"]] for each in summaries.values()]
    drawn = axes.barh(list(summaries), medians, color=PALETTE[0], xerr=list(zip(*spread)), error_kw={"capsize": 3})
    axes.bar_label(drawn, [style.format(median) for median in medians], padding=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_stages(axes: Any, stages: Result) -> None:
    start = 0.0
    of_step = {name: 1000 * stage["seconds"]["median"] for name, stage in stages.items() if stage["in_step"]}
    for number, (name, width) in enumerate(of_step.items()):
        label = f"{name} {width:.3g}"
        axes.barh([""], [width], left=start, color=PALETTE[number % len(PALETTE)], label=label)
        start += width
    axes.set_title("stages of a step in isolation, ms: medians end to end", loc="left", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=4, frameon=False, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
