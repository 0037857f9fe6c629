"""Render the page: one run in full, or a comparison of several."""

import base64
import hashlib
import re
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sslkit.errors import UserError
from sslkit.machine import atomic
from sslkit.machine.environment import package_version
from sslkit.runs.directory import RunFiles, read_run
from sslkit.runs.fields import Record, is_number
from sslkit.runs.label_free import LABEL_FREE
from sslkit.runs.report import costs, figures
from sslkit.runs.report.results import (
    Headline,
    WithoutLabels,
    headline_of,
    headlines,
    in_words,
    pareto,
    percent,
    shared_headline,
    without_labels,
    without_labels_of,
)
from sslkit.runs.verdict import verdict

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).resolve().parent / "templates"
FIRST_CURVES = {
    "loss": "Loss",
    "lr": "Learning rate",
    "images_per_second": "Images per second",
    "feature_std": "Spread of the features (feature_std)",
    "effective_rank": "Directions of the features (effective_rank)",
}
NO_CURVE = frozenset({"step", "epoch", "seconds"})
VIEWS = "view_retrieval"
COSTS = {"GFLOPs": "GFLOPs of one image", "seconds": "seconds of training", "kWh": "kWh of training"}


def write(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or the comparison of several, as one HTML file; return its path.

    out: None means report.html, in the run directory for one run, in the working directory for several. The page
    contains its pictures, styles and scripts, and its content security policy forbids all requests. Raises UserError
    if a path holds no run, or if a run is given twice.
    """
    runs = [read_run(Path(path)) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError("the same run is named twice; name each once")
    out = out or (runs[0].path / "report.html" if len(runs) == 1 else Path("report.html"))
    page = _render("run", one_run(runs[0])) if len(runs) == 1 else _render("runs", several_runs(runs))
    try:
        atomic.write_text(out, page)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another place with --out") from error
    return out


def one_run(run: RunFiles) -> dict[str, Any]:
    """Return the content of the template `run` for one run."""
    return {
        "title": run.name,
        "run": run,
        "remarks": [*_unfinished(run), *run.remarks],
        "subtitle": _subtitle(run),
        "headlines": headlines(run),
        "without_labels": without_labels(run),
        "verdict": [] if _unfinished(run) else verdict(run.metrics, run.evaluations, run.derived.get("width")),
        "views": _picture(run, "figures/views.png", _views_alt(run)),
        "charts": [*_accuracy_charts(run), *_label_free_charts(run), *_metric_charts(run, FIRST_CURVES)],
        "checkpoints": _picture(run, "figures/checkpoints.png", "Accuracy of every kept checkpoint over epochs."),
        "more_charts": _metric_charts(run, {k: k for k in _other_metrics(run)}),
        "exhibits": _exhibits(run),
        "costs": costs.facts(run),
        "derived": costs.derived_facts(run),
        "measurements": [(record, in_words(record)) for record in run.evaluations],
        "settings": _settings(run),
        "commands": _commands(run),
        "environment": _environment_rows(run),
        "skipped": _skipped(run),
    }


def several_runs(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Return the content of the template `runs` for a comparison."""
    name = shared_headline(runs)
    chosen = [headline_of(run, name) for run in runs]
    names = _names(runs)
    table = [[without_labels_of(run, figure) for figure in LABEL_FREE] for run in runs]
    return {
        "title": f"{len(runs)} runs",
        "subtitle": ", ".join(dict.fromkeys(run.setting("method.name") for run in runs)),
        "remarks": [f"{n}: {remark}" for n, run in zip(names, runs) for remark in (*_unfinished(run), *run.remarks)]
        + _caveats(chosen, table),
        "rows": [_row(number, *row) for number, row in enumerate(zip(names, runs, chosen, table), 1)],
        "shared": next((h.title for h in chosen if h), None),
        "label_free": list(LABEL_FREE.values()) if any(map(any, table)) else [],
        "units": COSTS,
        "charts": [*_overlaid(names, runs, chosen), *_tradeoffs(names, runs, chosen)],
        "heat": _heat(runs, chosen),
        "different": _differences(runs),
        "names": names,
    }


def _render(template: str, content: dict[str, Any]) -> str:
    style, script = ((TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _templates().get_template(f"{template}.html.j2")
    return page.render(
        **content, style=Markup(style), script=Markup(script), script_digest=digest, version=package_version("sslkit")
    )


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Autoescape, because names of classes, files and settings come from data.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = costs.plain
    environment.filters["percent"] = percent
    return environment


# --- one run ---


def _subtitle(run: RunFiles) -> str:
    keys = ("method.name", "backbone.name", "data.name", "data.root", "epochs", "batch_size", "seed")
    words = {"data.root": "images in", "epochs": "epochs", "batch_size": "batch", "seed": "seed"}
    parts = [f"{words.get(key, '')} {run.setting(key)}".strip() for key in keys if run.setting(key) != "—"]
    return " · ".join(parts)


def _views_alt(run: RunFiles) -> str:
    return (
        f"Images of the first batch, one per row: on the left the stored image, next to it the views that the "
        f"augmentation {run.setting('augment.name')} made of it for the method {run.setting('method.name')}."
    )


def _picture(run: RunFiles, path: str, alt: str) -> figures.Picture | None:
    file = run.inside(path)
    return figures.picture(file, alt) if file else None


def _accuracy_charts(run: RunFiles) -> list[figures.Chart]:
    trained = [h for h in headlines(run) if len(h.epochs) > 1]
    return [figures.curves("Accuracy", [_series(h.title, h) for h in trained], percent=True)] if trained else []


def _label_free_charts(run: RunFiles) -> list[figures.Chart]:
    found = [f for f in without_labels(run) if len(f.epochs) > 1]
    series = [(f, _label_free_series(f.about.title, f)) for f in found]
    return [figures.curves(_titled(f.name), [curve], percent=f.about.fraction) for f, curve in series]


def _titled(name: str) -> str:
    about = LABEL_FREE[name]
    return f"{about.title[0].upper()}{about.title[1:]}, without labels ({about.better} is better)"


def _label_free_series(name: str, figure: WithoutLabels) -> figures.Series:
    x, y = zip(*figure.epochs)
    return figures.Series(name, list(x), list(y))


def _series(name: str, headline: Headline) -> figures.Series:
    epochs = headline.epochs
    low, high = ([a.low for a in epochs if a.low is not None], [a.high for a in epochs if a.high is not None])
    whole = len(low) == len(high) == len(epochs)
    x, y = [a.epoch for a in epochs], [a.value for a in epochs]
    return figures.Series(name, x, y, low if whole else None, high if whole else None)


def _metric_charts(run: RunFiles, titles: dict[str, str]) -> list[figures.Chart]:
    curves = {title: _metric(run, key, title) for key, title in titles.items()}
    return [figures.curves(title, [series]) for title, series in curves.items() if series.x]


def _metric(run: RunFiles, key: str, name: str) -> figures.Series:
    known = [record for record in run.metrics if is_number(record.get(key))]
    return figures.Series(name, [record["epoch"] for record in known], [record[key] for record in known])


def _other_metrics(run: RunFiles) -> list[str]:
    return sorted({key for record in run.metrics for key in record} - NO_CURVE - set(FIRST_CURVES))


def _exhibits(run: RunFiles) -> list[dict[str, Any]]:
    """Return the attachments of evaluators (notes, pictures, tables, explorers), of each one's newest measurement."""
    newest = {(r["evaluator"], str(r.get("protocol"))): r for r in run.evaluations if r.get("files") or r.get("notes")}
    return [_exhibit(run, record) for record in newest.values()]


def _exhibit(run: RunFiles, record: Record) -> dict[str, Any]:
    named = [(run.inside(f.get("path")), str(f.get("alt", ""))) for f in _list(record, "files") if isinstance(f, dict)]
    files = [(path, alt or path.name) for path, alt in named if path]
    explorers = [(e, alt) for path, alt in files if path.suffix == ".json" and (e := figures.explorer(path))]
    # Sheets of thumbnails are shown by their explorer, one thumbnail at a time.
    sheets = {e["sprite"]["file"] for e, _ in explorers if e["sprite"]}
    return {
        "title": record["evaluator"],
        "protocol": str(record.get("protocol", "")),
        "result": in_words(record),
        "notes": [str(note) for note in _list(record, "notes")],
        "explorers": explorers,
        "pictures": [p for path, alt in files if path.name not in sheets and (p := figures.picture(path, alt))],
        "tables": [
            (t, alt or path.name) for path, alt in files if path.suffix == ".csv" and (t := figures.table(path))
        ],
        "missing": len(_list(record, "files")) - len(files),
    }


def _list(record: Record, key: str) -> list[Any]:
    found = record.get(key)
    return found if isinstance(found, list) else []


def _settings(run: RunFiles) -> list[tuple[str, str, str]]:
    """Return (key, value, origin) of each setting."""
    # `evaluators` itself is only a marker that the list was given; each evaluator has its own key.
    shown = {key: value for key, value in run.settings.items() if key != "evaluators"}
    return [(key, costs.plain(value), str(run.origins.get(key, "default"))) for key, value in shown.items()]


def _commands(run: RunFiles) -> list[tuple[str, str]]:
    given = run.environment.get("command")
    made = re.sub(r"^__main__\.py", "sslkit", given) if isinstance(given, str) else None
    again = f"sslkit run {shlex.quote(str(run.path / 'config.yaml'))} out=NEW_DIRECTORY"
    return [(label, command) for label, command in (("command", made), ("to repeat the run", again)) if command]


def _environment_rows(run: RunFiles) -> list[tuple[str, str]]:
    plain = {k: v for k, v in run.environment.items() if k not in ("command", "origins", "derived", "versions")}
    versions = run.environment.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    return [(str(key), costs.plain(value)) for key, value in (plain | versions).items() if value is not None]


def _skipped(run: RunFiles) -> dict[str, Any]:
    count, named = run.derived.get("skipped"), _list(run.derived, "skipped_images")
    pairs = [tuple(map(str, pair)) for pair in named if isinstance(pair, list | tuple) and len(pair) == 2]
    return {"count": count if is_number(count) else 0, "named": pairs}


# --- several runs ---


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Return directory names; whole paths where two names are equal."""
    short = [run.name for run in runs]
    return [name if short.count(name) == 1 else str(run.path) for name, run in zip(short, runs)]


def _caveats(chosen: Sequence[Headline | None], table: list[list[WithoutLabels | None]]) -> list[str]:
    label_free = {(f.data, f.protocol) for row in table for f in row if f}
    if max(len({(h.data, h.protocol) for h in chosen if h}), len(label_free)) > 1:
        return ["Not all runs were evaluated with the same images and protocol: compare them with care."]
    return []


def _unfinished(run: RunFiles) -> list[str]:
    """Return a remark about a run that has not trained to its end."""
    if run.progress.finished or run.progress.planned is None:
        return []
    return [f"The run is unfinished: {run.progress.epoch or 0:g} of {run.progress.planned} epochs are trained."]


def _row(
    number: int, name: str, run: RunFiles, headline: Headline | None, label_free: list[WithoutLabels | None]
) -> dict[str, Any]:
    return {
        "number": number,
        "name": name,
        "settings": [_setting(run, key) for key in ("method.name", "backbone.name", "data.name", "epochs", "seed")],
        "headline": headline,
        "label_free": label_free,
        "costs": [costs.cost(run, unit) for unit in COSTS],
        "parameters": run.derived.get("parameters") if is_number(run.derived.get("parameters")) else None,
        "others": "; ".join(f"{h.title} {h.last}" for h in headlines(run) if h != headline),
    }


def _setting(run: RunFiles, key: str) -> str:
    return str(run.progress) if key == "epochs" and _unfinished(run) else run.setting(key)


def _overlaid(names: list[str], runs: Sequence[RunFiles], chosen: Sequence[Headline | None]) -> list[figures.Chart]:
    accuracy = [_series(name, h) for name, h in zip(names, chosen) if h]
    title = next((h.title for h in chosen if h), "")
    views = [_label_free_series(n, f) for n, run in zip(names, runs) if (f := without_labels_of(run, VIEWS))]
    losses = [s for name, run in zip(names, runs) if (s := _metric(run, "loss", name)).x]
    charts = [figures.curves(f"Accuracy: {title}", accuracy, percent=True)] if accuracy else []
    # Where nothing has labels, the views' retrieval is what compares runs.
    charts += [figures.curves(_titled(VIEWS), views, percent=True)] if views and not accuracy else []
    return charts + ([figures.curves("Loss (compare within one method)", losses)] if losses else [])


def _tradeoffs(names: list[str], runs: Sequence[RunFiles], chosen: Sequence[Headline | None]) -> list[figures.Chart]:
    """Return charts of accuracy against each cost known for at least two runs; points have the numbers of the table."""
    charts = []
    for unit, words in COSTS.items():
        known = [(n, name, costs.cost(run, unit), h) for n, (name, run, h) in enumerate(zip(names, runs, chosen), 1)]
        points = [figures.Point(n, name, c, h.last.value) for n, name, c, h in known if c is not None and h]
        if len(points) > 1:
            front = pareto(point.place for point in points)
            charts.append(figures.scatter(f"Accuracy against {words}", unit, points, front))
    return charts


def _heat(runs: Sequence[RunFiles], chosen: Sequence[Headline | None]) -> dict[str, Any] | None:
    """Return the mean accuracy, and number of runs, by method and backbone; None if there is only one combination."""
    cells: dict[tuple[str, str], list[float]] = {}
    for run, headline in zip(runs, chosen):
        if headline:
            key = (run.setting("method.name"), run.setting("backbone.name"))
            cells.setdefault(key, []).append(headline.last.value)
    if len(cells) < 2:
        return None
    means = {key: sum(values) / len(values) for key, values in cells.items()}
    low, high = min(means.values()), max(means.values())
    shade = {key: round(100 * (mean - low) / ((high - low) or 1)) for key, mean in means.items()}
    methods, backbones = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    rows = [
        (m, [(means[m, b], len(cells[m, b]), shade[m, b]) if (m, b) in cells else None for b in backbones])
        for m in methods
    ]
    return {"backbones": backbones, "rows": rows}


def _differences(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ between runs, with their values."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "out")
    rows = [(key, [run.setting(key) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
