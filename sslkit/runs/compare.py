"""Comparison of runs: the accuracies, figures without labels and costs of each."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from sslkit import plugins
from sslkit.errors import UserError
from sslkit.runs.label_free import LABEL_FREE, label_free
from sslkit.runs.progress import Progress
from sslkit.runs.records import CHANCE, FLOORS, RANDOM_INIT, floors_of
from sslkit.runs.run import Run

Row = dict[str, Any]

NAMES = ("run", "method", "backbone", "data")
COSTS = ("parameters", "gflops", "hours", "kwh", "kg_co2e")
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that spreadsheets calculate."""
WIDEST = 10_000
"""Columns that no table needs."""
NONE = "—"
"""Text of a cell whose figure is missing."""


def table(runs: Iterable[str | Path | Run], sort: str | None = None) -> list[Row]:
    """Return one mapping per run, all with the same keys; the value is None if a run lacks a figure.

    Keys: run, method, backbone, data, epochs (trained so far), epochs_planned, finished; for every evaluator E with an
    accuracy: E/top1 (a fraction, after the last evaluated epoch of training, E/epoch; None before there is one),
    E/top1_low and E/top1_high (its 95 % interval), E/chance, E/random_init and E/raw_pixels (its floors), E/top1_max
    (the maximum over epochs of training: selected on the test images, and therefore optimistic); for every figure F
    without labels (rankme, view_retrieval ...): geometry/F and geometry/F_random_init;
    geometry/view_retrieval_chance; parameters, gflops (of the backbone, for one image), hours, kwh, kg_co2e (of the
    training). Measurements during the run take precedence over later ones, which may be on other images.

    sort: one of the keys; accuracies in descending order, figures without labels from better to worse (`LABEL_FREE`),
    costs and names in ascending order.
    Raises UserError for a path that holds no run, and for an unknown key.
    """
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    results = [_accuracies(run) | _label_free(run) for run in opened]
    keys = dict.fromkeys(key for found in results for key in found)
    rows = [_row(run, {key: found.get(key) for key in keys}) for run, found in zip(opened, results)]
    return _sorted(rows, sort) if sort else rows


def show(rows: list[Row], style: str) -> None:
    """Print the result of `table` in a style: table, csv, json, markdown or latex."""
    if style == "table":
        from sslkit.runs.display import terminal

        console, drawn = terminal(), as_table(rows)
        # A number that is broken in its middle is another number.
        fits = console.measure(drawn, options=console.options.update(max_width=WIDEST)).maximum <= console.width
        console.print(drawn if fits else as_lists(rows))
    else:
        writers: dict[str, Callable[[list[Row]], str]] = {
            "csv": as_csv,
            "json": as_json,
            "markdown": as_markdown,
            "latex": as_latex,
        }
        click.echo(writers[style](rows), nl=False)


def as_table(rows: list[Row]) -> Table:
    """Return a table for the terminal."""
    heading, *body = _cells(rows)
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(heading):
        drawn.add_column(Text(column), justify="left" if number < len(NAMES) else "right", overflow="fold")
    for cells in body:
        drawn.add_row(*map(Text, cells))
    return drawn


def as_lists(rows: list[Row]) -> Table:
    """Return a table for a narrow terminal: the figures of a run below each other, one run after the other."""
    heading, *body = _cells(rows)
    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    for number, cells in enumerate(body):
        if number:
            drawn.add_row()
        for column, cell in zip(heading, cells):
            drawn.add_row(Text(column), Text(cell, style="" if column in NAMES else "bold"))
    return drawn


def as_csv(rows: list[Row]) -> str:
    """Return CSV with the keys of `table`, fractions in full precision; cells of missing figures are empty.

    Names that a spreadsheet would calculate, such as =1+1, begin with an apostrophe, as it asks for.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _for_spreadsheet(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def as_json(rows: list[Row]) -> str:
    """Return a JSON list of mappings with the keys of `table`; null for missing figures."""
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def as_markdown(rows: list[Row]) -> str:
    """Return a table in GitHub's Markdown."""
    return _tabulated([[_for_markdown(cell) for cell in cells] for cells in _cells(rows)], "pipe")


def as_latex(rows: list[Row]) -> str:
    r"""Return a LaTeX tabular that needs `\usepackage{booktabs}`."""
    return _tabulated([[cell.replace(NONE, "---") for cell in cells] for cells in _cells(rows)], "latex_booktabs")


def _tabulated(cells: list[list[str]], style: str) -> str:
    from tabulate import tabulate

    heading, *body = cells
    align = ["left" if number < len(NAMES) else "right" for number in range(len(heading))]
    return tabulate(body, heading, style, disable_numparse=True, colalign=align, headersglobalalign=None) + "\n"


def _row(run: Run, results: Row) -> Row:
    config, derived, progress = run.config, run.derived, run.progress
    root = getattr(config.data.options, "root", None)
    return {
        "run": str(run.path),
        "method": config.method.name,
        "backbone": config.backbone.name,
        "data": Path(root).name if root else config.data.name,
        "epochs": progress.epoch or 0,
        "epochs_planned": progress.planned,
        "finished": progress.finished,
        **results,
        **{cost: derived.get(cost) for cost in COSTS},
    }


def _accuracies(run: Run) -> Row:
    records = [r for r in run.evaluations if "top1" in r]
    found: Row = {}
    for name in dict.fromkeys(r["evaluator"] for r in records):
        mine, last = _decisive([r for r in records if r["evaluator"] == name])
        found |= {f"{name}/{key}": last.get(key) for key in ("top1", "top1_low", "top1_high", "epoch")}
        first = next((r["top1"] for r in mine if r["epoch"] == 0), None)
        floors = {RANDOM_INIT: first, **floors_of(last)}
        found |= {f"{name}/{floor}": floors.get(floor) for floor in FLOORS}
        found[f"{name}/top1_max"] = max((r["top1"] for r in mine if r["epoch"]), default=None)
    return found


def _label_free(run: Run) -> Row:
    records = [r for r in run.evaluations if label_free(r)]
    if not records:
        return {}
    mine, last = _decisive(records)
    first = next((label_free(r) for r in mine if r["epoch"] == 0), {})
    found: Row = {}
    for name in label_free(last) if last else first:
        floors = {RANDOM_INIT: first.get(name), **floors_of(last, name)}
        found |= {f"geometry/{name}": last.get(name), f"geometry/{name}_random_init": floors[RANDOM_INIT]}
        found |= {f"geometry/{name}_chance": floors[CHANCE]} if CHANCE in floors else {}
    return found


def _decisive(records: list[Row]) -> tuple[list[Row], Row]:
    """Return the records of an evaluator that count, those during the run if there are any, and the last of training.

    The last is {} if there is none after an epoch: random initialisation is a floor, and never the result of a run.
    """
    mine = [r for r in records if r["during_run"]] or records
    trained = [r for r in mine if r["epoch"]]
    return mine, max(reversed(trained), key=lambda r: r["epoch"], default={})


def _sorted(rows: list[Row], key: str) -> list[Row]:
    if rows and key not in rows[0]:
        raise UserError(f"--sort {key}: no column is called that; {plugins.suggest(key, list(rows[0]))}")
    known = [row for row in rows if row[key] is not None]
    figure = LABEL_FREE.get(key.removeprefix("geometry/"))
    known.sort(key=lambda row: figure.quality(row[key]) if figure else row[key], reverse="/" in key)
    return known + [row for row in rows if row[key] is None]


def _cells(rows: list[Row]) -> list[list[str]]:
    """Return the heading and one row per run, as text."""
    evaluators = [key.removesuffix("/top1") for key in rows[0] if key.endswith("/top1")]
    unlabelled = any(all(row[f"{name}/top1"] is None for name in evaluators) for row in rows)
    figures = [name for name in LABEL_FREE if unlabelled and f"geometry/{name}" in rows[0]]
    heading = [*NAMES, "epochs"]
    for name in evaluators:
        heading += [f"{name} top-1, %", f"{name} max over epochs, %", f"{name} {' / '.join(FLOORS.values())}, %"]
    heading += [f"{LABEL_FREE[name].title} (random init)" for name in figures]
    heading += ["parameters, M", "GFLOPs", "hours", "kWh", "kg CO2e"]
    return [heading, *([*_formatted(row, evaluators, figures)] for row in rows)]


def _formatted(row: Row, evaluators: Iterable[str], figures: Iterable[str]) -> list[str]:
    cells = [*(row[name] for name in NAMES), str(Progress(row["epochs"], None, row["epochs_planned"]))]
    for name in evaluators:
        floors = " / ".join(_per_cent(row[f"{name}/{floor}"]) for floor in FLOORS)
        cells += [_with_interval(row, name), _per_cent(row[f"{name}/top1_max"]), floors]
    cells += [_beside_random_init(row, name) for name in figures]
    parameters = row["parameters"]
    return [*cells, *map(_number, [parameters and parameters / 1e6, *(row[cost] for cost in COSTS[1:])])]


def _with_interval(row: Row, evaluator: str) -> str:
    """Format an accuracy in per cent with its interval: 83.1 (80.2 to 85.7)."""
    low, high = (row.get(f"{evaluator}/top1_{end}") for end in ("low", "high"))
    interval = "" if low is None or high is None else f" ({_per_cent(low)} to {_per_cent(high)})"
    epoch = row.get(f"{evaluator}/epoch")
    # Elsewhere all figures are those of the last epoch.
    when = "" if epoch in (None, row["epochs_planned"]) else f" at epoch {epoch:g}"
    return _per_cent(row[f"{evaluator}/top1"]) + interval + when


def _beside_random_init(row: Row, name: str) -> str:
    """Format a figure without labels with that of random initialisation: 612.2 (78.6)."""
    value, first = row[f"geometry/{name}"], row[f"geometry/{name}_random_init"]
    text, before = (NONE if v is None else LABEL_FREE[name].text(v) for v in (value, first))
    return text if value is first is None else f"{text} ({before})"


def _per_cent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _for_spreadsheet(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def _for_markdown(cell: str) -> str:
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>|#" else sign for sign in cell)
