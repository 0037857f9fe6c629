"""Runs side by side: what each reached, and what it took."""

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
from sslkit.runs.run import Run

Row = dict[str, Any]

NAMES = ("run", "method", "backbone", "data")
COSTS = ("parameters", "gflops", "hours", "kwh", "kg_co2e")
NONE = "—"
"""What stands where a run lacks a figure."""


def table(runs: Iterable[str | Path | Run], sort: str | None = None) -> list[Row]:
    """One mapping a run, all with the same keys; None where a run lacks a figure.

    run, method, backbone, data, epochs (trained so far); for every evaluator E that gives an accuracy: E/top1 (a
    fraction, after the last epoch that was measured), E/top1_low and E/top1_high (its 95 % interval), E/top1_max (the
    highest of all epochs that trained: chosen on the test images, so no honest figure); parameters, gflops (of the
    backbone, for one image), hours, kwh, kg_co2e (of the training). What the run itself measured goes before what was
    measured of it later, maybe on other images.

    sort: one of the keys; accuracies from the highest on, costs from the lowest, names by the alphabet.
    Raises UserError for a path that holds no run, and for another key.
    """
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    accuracies = [_accuracies(run) for run in opened]
    keys = dict.fromkeys(key for found in accuracies for key in found)
    rows = [_row(run, {key: found.get(key) for key in keys}) for run, found in zip(opened, accuracies)]
    return _sorted(rows, sort) if sort else rows


def show(rows: list[Row], style: str) -> None:
    """Print what `table` gives as table, csv, json, markdown or latex."""
    if style == "table":
        from sslkit.runs.display import terminal

        terminal().print(as_table(rows))
    else:
        writers: dict[str, Callable[[list[Row]], str]] = {
            "csv": as_csv,
            "json": as_json,
            "markdown": as_markdown,
            "latex": as_latex,
        }
        click.echo(writers[style](rows), nl=False)


def as_table(rows: list[Row]) -> Table:
    """For the terminal."""
    heading, *body = _cells(rows)
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(heading):
        drawn.add_column(Text(column), justify="left" if number < len(NAMES) else "right", overflow="fold")
    for cells in body:
        drawn.add_row(*map(Text, cells))
    return drawn


def as_csv(rows: list[Row]) -> str:
    """Fractions and full precision, under the keys of `table`; an empty cell where there is no figure."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(rows: list[Row]) -> str:
    """A list of mappings, with the keys of `table`; null where there is no figure."""
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def as_markdown(rows: list[Row]) -> str:
    """A table of GitHub's Markdown."""
    return _tabulated([[_for_markdown(cell) for cell in cells] for cells in _cells(rows)], "pipe")


def as_latex(rows: list[Row]) -> str:
    r"""A tabular of the package booktabs: `\usepackage{booktabs}`."""
    return _tabulated([[cell.replace(NONE, "---") for cell in cells] for cells in _cells(rows)], "latex_booktabs")


def _tabulated(cells: list[list[str]], style: str) -> str:
    from tabulate import tabulate

    heading, *body = cells
    align = ["left" if number < len(NAMES) else "right" for number in range(len(heading))]
    return tabulate(body, heading, style, disable_numparse=True, colalign=align, headersglobalalign=None) + "\n"


def _row(run: Run, accuracies: Row) -> Row:
    config, derived = run.config, run.derived
    root = getattr(config.data.options, "root", None)
    return {
        "run": str(run.path),
        "method": config.method.name,
        "backbone": config.backbone.name,
        "data": Path(root).name if root else config.data.name,
        "epochs": run.metrics[-1]["epoch"] if run.metrics else 0,
        **accuracies,
        **{cost: derived.get(cost) for cost in COSTS},
    }


def _accuracies(run: Run) -> Row:
    records = [r for r in run.evaluations if "top1" in r]
    found: Row = {}
    for name in dict.fromkeys(r["evaluator"] for r in records):
        mine = [r for r in records if r["evaluator"] == name]
        mine = [r for r in mine if r["during_run"]] or mine
        last = max(reversed(mine), key=lambda r: r["epoch"])
        found |= {f"{name}/{key}": last.get(key) for key in ("top1", "top1_low", "top1_high")}
        found[f"{name}/top1_max"] = max(r["top1"] for r in mine if r["epoch"] or last is r)
    return found


def _sorted(rows: list[Row], key: str) -> list[Row]:
    if rows and key not in rows[0]:
        raise UserError(f"--sort {key}: no column is called that; {plugins.suggest(key, list(rows[0]))}")
    known = [row for row in rows if row[key] is not None]
    known.sort(key=lambda row: row[key], reverse="/" in key)
    return known + [row for row in rows if row[key] is None]


def _cells(rows: list[Row]) -> list[list[str]]:
    """A heading and a row a run, in words."""
    evaluators = dict.fromkeys(key.partition("/")[0] for key in rows[0] if "/" in key)
    heading = [*NAMES, "epochs"]
    for name in evaluators:
        heading += [f"{name} top-1, %", f"{name} max over epochs, %"]
    heading += ["parameters, M", "GFLOPs", "hours", "kWh", "kg CO2e"]
    return [heading, *([*_words(row, evaluators)] for row in rows)]


def _words(row: Row, evaluators: Iterable[str]) -> list[str]:
    cells = [*(row[name] for name in NAMES), f"{row['epochs']:g}"]
    for name in evaluators:
        cells += [_with_interval(row, name), _per_cent(row[f"{name}/top1_max"])]
    parameters = row["parameters"]
    return [*cells, *map(_number, [parameters and parameters / 1e6, *(row[cost] for cost in COSTS[1:])])]


def _with_interval(row: Row, evaluator: str) -> str:
    """83.1 (80.2 to 85.7)"""
    low, high = (row.get(f"{evaluator}/top1_{end}") for end in ("low", "high"))
    interval = "" if low is None or high is None else f" ({_per_cent(low)} to {_per_cent(high)})"
    return _per_cent(row[f"{evaluator}/top1"]) + interval


def _per_cent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _for_markdown(cell: str) -> str:
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>|#" else sign for sign in cell)
