"""Find the transformations to which PIRL should learn to be invariant: train it on each combination, and rank them.

Every combination is an ordinary run in a folder of its own, so that a search that was stopped can be resumed.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from sslkit.config.layers import Layer, Mistakes, parse_words, settings_layer
from sslkit.config.resolve import Resolved
from sslkit.config.run import RunConfig
from sslkit.errors import UserError
from sslkit.machine import atomic
from sslkit.machine.signals import Interrupted
from sslkit.methods.transforms import check_names
from sslkit.runs.display import Display
from sslkit.runs.records import as_metrics
from sslkit.runs.run import Run
from sslkit.training import engine
from sslkit.training.preflight import resolve_again, resolve_new_layers

if TYPE_CHECKING:
    from rich.table import Table

BASE = {"method.name": "pirl", "evaluators": "replace", "evaluators.knn": True}
"""Default settings of the runs of a search."""
DECIDED = {"out": "--out", "method.transforms": "--transforms"}
"""Settings that the search itself sets -> the option that determines them."""


@dataclass(frozen=True)
class Outcome:
    """The results of one combination."""

    transforms: tuple[str, ...]
    """The combination, in the order of application (jigsaw is applied last wherever it stands)."""
    run: str
    """Name of the run directory in the folder of the search."""
    figures: dict[str, float]
    """Results after the last epoch, such as {"knn/top1": 0.83}; accuracies are fractions."""
    untrained: dict[str, float]
    """Results at random initialisation, with the same keys."""


def search(
    settings: Mapping[str, Any],
    transforms: Sequence[str],
    sizes: Sequence[int] = (1, 2),
    out: str | Path = "runs/search",
    display: Display | None = None,
) -> list[Outcome]:
    """Train PIRL on each combination of `transforms` of each of the `sizes`, evaluate, and return outcomes, best first.

    settings: those of `sslkit.run`, the same for all combinations, so that these have the same budget.
    out: folder for one run per combination, results.json, results.csv, results.md and, if there are single
    transformations or pairs, results.png. Finished runs in it are not repeated; stopped ones are resumed.
    Raises UserError, before anything is trained, for mistakes in the arguments and for data without labels.
    """
    mistakes = Mistakes()
    return _search(settings_layer("search", dict(settings), mistakes), mistakes, transforms, sizes, out, display)


def search_words(
    words: Iterable[str], transforms: Sequence[str], sizes: Sequence[int], out: Path, display: Display | None = None
) -> list[Outcome]:
    """Search like `search`, with settings as in `sslkit search key=value...`."""
    mistakes = Mistakes()
    return _search(Layer("command line", parse_words(words, mistakes)), mistakes, transforms, sizes, out, display)


def _search(
    layer: Layer,
    mistakes: Mistakes,
    transforms: Sequence[str],
    sizes: Sequence[int],
    out: str | Path,
    display: Display | None,
) -> list[Outcome]:
    display = display or Display()
    out = Path(out).resolve()
    chosen = list(_combinations(tuple(transforms), sizes))
    planned = [_plan(layer, mistakes, combination, out) for combination in chosen]
    _check_figures(planned[0].config, display)
    outcomes: list[Outcome] = []
    for number, (combination, resolved) in enumerate(zip(chosen, planned), 1):
        display.log(f"[{number}/{len(chosen)}] {_label(combination)}")
        outcomes.append(_outcome(combination, _trained(resolved, display)))
        outcomes.sort(key=lambda outcome: -outcome.figures[_ranked_by(outcome)])
        _write(out, outcomes, tuple(transforms), planned[0].config)
    return outcomes


def _combinations(transforms: tuple[str, ...], sizes: Sequence[int]) -> Iterator[tuple[str, ...]]:
    try:
        check_names(transforms)
    except ValueError as error:
        raise UserError(f"transforms: {error}") from error
    if not sizes:
        raise UserError("sizes: give at least one number of transformations, such as 1,2")
    for size in sorted(set(sizes)):
        if not 1 <= size <= len(transforms):
            raise UserError(
                f"sizes: {size} of {len(transforms)} transformations cannot be chosen; give 1 to {len(transforms)}"
            )
        yield from combinations(transforms, size)


def _plan(layer: Layer, mistakes: Mistakes, combination: tuple[str, ...], out: Path) -> Resolved:
    """Return the configuration of one combination. Raises UserError if its run exists with other settings."""
    for key in layer.values.keys() & DECIDED.keys():
        mistakes.add(key, f"set by the search; use {DECIDED[key]}")
    if layer.values.get("method.name", "pirl") != "pirl":
        mistakes.add("method", "a search trains pirl; leave it out")
    mistakes.stop()
    path = out / _label(combination)
    own = Layer("search", {"method.transforms": list(combination), "out": str(path)})
    old = (path / "config.yaml").is_file()
    resolve = resolve_again if old else resolve_new_layers
    resolved = resolve([Layer("search", BASE), layer, own], mistakes)
    if old and (changed := _changed(Run.open(path).config, resolved.config)):
        raise UserError(f"{path} was run with another {' and '.join(changed)}; choose another --out")
    return resolved


def _changed(before: RunConfig, now: RunConfig) -> list[str]:
    old, new = (config.model_dump(mode="json") for config in (before, now))
    return [key for key in new if old[key] != new[key]]


def _check_figures(config: RunConfig, display: Display) -> None:
    from sslkit.data import open_stores

    if not config.evaluators:
        raise UserError("a search needs an evaluator to rank by; leave evaluators out, or name one")
    if open_stores(config.data, config.eval_data, config.seed, log=display.log).train is None:
        raise UserError("a search needs labels to evaluate with; name labelled images with eval_data=")


def _trained(resolved: Resolved, display: Display) -> Run:
    """Return the finished run of a combination: an existing one, resumed if it was stopped, or a new one."""
    path = resolved.config.out
    assert path is not None
    try:
        if not (path / "config.yaml").is_file():
            return engine.run(resolved, display)
        run = Run.open(path)
        return run if _finished(run) else engine.resume(path, display)
    except Interrupted:
        display.log(f"the same command resumes the search (--out {path.parent})")
        raise


def _finished(run: Run) -> bool:
    measured = {r["evaluator"] for r in run.evaluations if r["during_run"] and r["epoch"] == run.config.epochs}
    return measured >= {evaluator.name for evaluator in run.config.evaluators}


def _outcome(combination: tuple[str, ...], run: Run) -> Outcome:
    first, last = (
        {
            name: value
            for r in run.evaluations
            if r["during_run"] and r["epoch"] == epoch
            for name, value in as_metrics(r).items()
        }
        for epoch in (0, run.config.epochs)
    )
    return Outcome(combination, run.path.name, last, first)


def _ranked_by(outcome: Outcome) -> str:
    """Return the name of the first accuracy among the results, such as knn/top1."""
    for name in outcome.figures:
        if name.endswith("/top1"):
            return name
    raise UserError(f"a search ranks by an accuracy, and there is only {', '.join(outcome.figures)}; add evaluator knn")


def _label(combination: Iterable[str]) -> str:
    return "+".join(combination)


# --- output ---


def _write(out: Path, outcomes: list[Outcome], transforms: tuple[str, ...], config: RunConfig) -> None:
    settings = config.model_dump(mode="json", exclude={"out": True})
    settings["method"].pop("transforms")
    results = {"ranked_by": _ranked_by(outcomes[0]), "results": [asdict(o) for o in outcomes], "settings": settings}
    atomic.write_json(out / "results.json", results)
    atomic.write_text(out / "results.csv", as_csv(outcomes))
    atomic.write_text(out / "results.md", as_markdown(outcomes))
    if any(len(outcome.transforms) <= 2 for outcome in outcomes):
        with atomic.replacing(out / "results.png") as temporary:
            draw(outcomes, transforms, temporary)


def _rows(outcomes: list[Outcome]) -> list[list[str]]:
    """Return a heading, one row per combination, best first, and random initialisation; accuracies in per cent."""
    names = list(outcomes[0].figures)
    rows = [[_label(o.transforms), *(_formatted(name, o.figures[name]) for name in names)] for o in outcomes]
    untrained = ["(random initialisation)", *(_formatted(name, outcomes[0].untrained[name]) for name in names)]
    return [["transformations", *names], *rows, untrained]


def _formatted(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if "/top" in name else f"{value:.4g}"


def as_table(outcomes: list[Outcome]) -> "Table":
    """Return a table for the terminal."""
    from rich.table import Table

    heading, *rows = _rows(outcomes)
    table = Table(*heading, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def as_markdown(outcomes: list[Outcome]) -> str:
    heading, *rows = _rows(outcomes)
    align = ["left", *["right"] * (len(heading) - 1)]
    return tabulate(rows, heading, "pipe", disable_numparse=True, colalign=align) + "\n"


def as_csv(outcomes: list[Outcome]) -> str:
    """Return CSV with fractions in full precision; `size` is the number of transformations, 0 random initialisation."""
    names = list(outcomes[0].figures)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["transformations", "size", *names])
    writer.writerows([_label(o.transforms), len(o.transforms), *(o.figures[n] for n in names)] for o in outcomes)
    writer.writerow(["", 0, *(outcomes[0].untrained[n] for n in names)])
    return text.getvalue()


def matrix(outcomes: list[Outcome], transforms: Sequence[str]) -> NDArray[np.float64]:
    """Return the ranked accuracy of single transformations (diagonal) and pairs (symmetric), [N, N]; NaN: not tried."""
    values = np.full((len(transforms), len(transforms)), np.nan)
    for outcome in outcomes:
        if len(outcome.transforms) <= 2:
            i, j = (transforms.index(outcome.transforms[end]) for end in (0, -1))
            values[i, j] = values[j, i] = outcome.figures[_ranked_by(outcome)]
    return values


def draw(outcomes: list[Outcome], transforms: Sequence[str], file: Path) -> None:
    """Draw `matrix` as a PNG, in per cent, as in SimCLR's Figure 5; larger combinations are not shown."""
    from matplotlib.figure import Figure

    name = _ranked_by(outcomes[0])
    values = 100 * matrix(outcomes, transforms)
    side = 2.2 + 0.9 * len(transforms)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis")
    figure.colorbar(image, label=f"{name}, %", shrink=0.8)
    axes.set_xticks(range(len(transforms)), transforms, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(transforms)), transforms)
    for i, j in np.argwhere(np.isfinite(values)).tolist():
        dark = bool(np.less(image.norm(values[i, j]), 0.5))
        axes.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", color="white" if dark else "black")
    untrained = 100 * outcomes[0].untrained[name]
    axes.set_title(f"Pairs of transformations, singles on the diagonal\n(random initialisation: {untrained:.1f})")
    figure.savefig(file, format="png", dpi=150)
