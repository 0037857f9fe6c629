"""Tables for the terminal: components, settings, origins of settings, and results."""

import json
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.table import Table
from rich.text import Text

from sslkit import plugins
from sslkit.config import recipes
from sslkit.errors import UserError
from sslkit.runs.display import terminal

if TYPE_CHECKING:
    from sslkit.config.base import Config
    from sslkit.config.resolve import Resolved
    from sslkit.runs.run import Run


def print_components(kinds: list[str], as_json: bool) -> None:
    """Print every component of these kinds (or every recipe).

    as_json: print a JSON list for one kind, a mapping of kind to list for several.
    """
    rows = {kind: _recipes() if kind == "recipes" else [_row(c) for c in plugins.components(kind)] for kind in kinds}
    if as_json:
        click.echo(json.dumps(rows[kinds[0]] if len(kinds) == 1 else rows, indent=2, ensure_ascii=False))
        return
    console = terminal()
    for kind, components in rows.items():
        table = _table(kind, "summary", "from")
        for row in components:
            table.add_row(*map(Text, (row["name"], row["summary"], row["distribution"])))
        console.print(table)


def print_settings_of(kind: str, name: str | None) -> None:
    """Print the docstring and the settings of a component, or the settings of the run itself."""
    from sslkit.config.components import config_class
    from sslkit.config.run import Optimizer, RunConfig

    console = terminal()
    if kind == "run":
        console.print(_settings_table("", RunConfig))
        console.print(_settings_table("optimizer.", Optimizer))
        return
    if name is None:
        raise UserError(f"which one? There are: {', '.join(plugins.names(kind))}")
    component = plugins.find(kind, name)
    console.print(Text(_docstring(component)))
    section = {"evaluators": f"evaluators.{name}"}.get(kind) or _section(kind)
    console.print(_settings_table(f"{section}.", config_class(component)))


def print_recipe(name: str | None) -> None:
    """Print the text of a shipped recipe."""
    if name is None:
        raise UserError("which one? `sslkit list recipes` names them all")
    click.echo(recipes.text(name), nl=False)


def print_origins(resolved: "Resolved") -> None:
    """Print every resolved value and its origin."""
    table = _table("setting", "value", "from")
    for key, value in resolved.values.items():
        origin = resolved.origins.get(key, "default")
        table.add_row(Text(key), Text(json.dumps(value)), Text(origin, style="dim" if origin == "default" else "bold"))
    terminal().print(table)


def print_records(records: list[dict[str, Any]]) -> None:
    """Print the results of evaluators with their data and protocol."""
    from sslkit.runs.display import figures

    table = _table("evaluator", "result", "data", "protocol")
    for record in records:
        table.add_row(*map(Text, (record["evaluator"], figures(record), record["data"], record["protocol"])))
    console = terminal()
    console.print(table)
    for record in records:
        for note in record.get("notes", ()):
            console.print(Text(f"{record['evaluator']}: {note}"))


def print_epoch_curves(records: list[dict[str, Any]]) -> None:
    """Print each accuracy after the last epoch, and next to it, labelled as such, the maximum over epochs."""
    from sslkit.evaluation.checkpoints import epoch_curves
    from sslkit.runs.display import accuracy

    table = _table("evaluator", "epochs", "last epoch", "maximum over epochs (chosen by test labels)")
    for curve in epoch_curves(records):
        last, best = (f"{accuracy(r, curve.figure)} at {r['epoch']}" for r in (curve.last, curve.best))
        table.add_row(*map(Text, (f"{curve.evaluator} {curve.figure}", str(len(curve.records)), last, best)))
    terminal().print(table)


def print_outcome(run: "Run") -> None:
    """Print each last accuracy beside its floors, the figures without labels too, and the verdict."""
    console = terminal()
    records = [r for r in run.evaluations if r["during_run"]]
    for table in (_accuracy_table(records), _label_free_table(records)):
        if table.row_count:
            console.print(table)
    for sentence in run.verdict:
        console.print(Text(f"note: {sentence}", style="yellow"))
    console.print(Text(f"run:      {run.path}\nbackbone: {run.backbone_file}"))


def _accuracy_table(records: list[dict[str, Any]]) -> Table:
    """Return the last accuracies beside their floors; the gain is over random initialisation, in points."""
    from sslkit.runs.display import accuracy
    from sslkit.runs.records import FLOORS, RANDOM_INIT, floors_of

    table = _table("evaluator", *FLOORS.values(), "pre-trained", "gain")
    for name in dict.fromkeys(r["evaluator"] for r in records):
        mine = [r for r in records if r["evaluator"] == name and "top1" in r]
        if mine and mine[0]["epoch"] == 0 and len(mine) > 1:
            first, last = mine[0], mine[-1]
            floors = floors_of(last) | {RANDOM_INIT: first["top1"]}
            cells = [f"{100 * floors[floor]:.1f} %" if floor in floors else "" for floor in FLOORS]
            gain = f"{100 * (last['top1'] - first['top1']):+.1f}"
            table.add_row(f"{name} top-1", *cells, accuracy(last, "top1"), gain)
    return table


def _label_free_table(records: list[dict[str, Any]]) -> Table:
    """Return the last figures without labels, beside chance and random initialisation."""
    from sslkit.runs.label_free import LABEL_FREE, label_free
    from sslkit.runs.records import CHANCE, FLOORS, RANDOM_INIT, floors_of

    table = _table("without labels", "better", FLOORS[CHANCE], FLOORS[RANDOM_INIT], "pre-trained")
    last = next((r for r in reversed(records) if r["epoch"] and label_free(r)), None)
    if last is None:
        return table
    for name, value in label_free(last).items():
        figure, floors = LABEL_FREE[name], floors_of(last, name)
        cells = [figure.text(floors[floor]) if floor in floors else "" for floor in (CHANCE, RANDOM_INIT)]
        table.add_row(figure.title, figure.better, *cells, figure.text(value))
    return table


def _row(component: plugins.Component) -> dict[str, str]:
    return {
        "name": component.name,
        "summary": component.summary,
        "distribution": component.distribution,
    }


def _recipes() -> list[dict[str, str]]:
    shipped = plugins.components("recipes")
    return [{"name": c.name, "summary": recipes.summary(c.name), "distribution": c.distribution} for c in shipped]


def _section(kind: str) -> str:
    from sslkit.config.layers import SECTIONS

    return next(section for section, owner in SECTIONS.items() if owner == kind)


def _docstring(component: Any) -> str:
    import inspect

    return inspect.getdoc(getattr(component, "func", component)) or ""


def _settings_table(prefix: str, config: "type[Config]") -> Table:
    table = _table("setting", "type", "default", "meaning")
    for row in _rows(prefix, config):
        table.add_row(*map(Text, row))
    return table


def _rows(prefix: str, config: "type[Config]", defaults: Any = None) -> list[tuple[str, str, str, str]]:
    from sslkit.config.base import Choice, Config

    rows = []
    for name, field in config.model_fields.items():
        default = getattr(defaults, name) if defaults is not None else field.get_default(call_default_factory=True)
        if isinstance(default, Config) and not isinstance(default, Choice):
            rows += _rows(f"{prefix}{name}.", type(default), default)
        else:
            required = field.is_required() and defaults is None
            rows.append((prefix + name, _type(field), "" if required else _value(default), field.description or ""))
    return rows


def _value(default: Any) -> str:
    return json.dumps(default, default=str)


def _type(field: Any) -> str:
    """Format a field's annotation with its bounds: `float, > 0`."""
    text = _type_name(field.annotation)
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [f"{signs[k]} {getattr(m, k)}" for m in field.metadata for k in signs if hasattr(m, k)]
    return ", ".join([text, *bounds])


def _type_name(annotation: Any) -> str:
    parts = get_args(annotation)
    if not parts:
        return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    if getattr(annotation, "__origin__", None) is tuple:
        return f"[{', '.join('...' if p is Ellipsis else _type_name(p) for p in parts)}]"
    return " | ".join(p if isinstance(p, str) else _type_name(p) for p in parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
