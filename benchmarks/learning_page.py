"""The page and the chart of `learning.py`, from its JSON alone: tables, floors, and targets that are met or not met."""

import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import lightly_example
from learning_cells import OWN, PIXELS, RANDOM, Cell, floors_of
from sslkit_bench.show import STYLE, svg_of

from sslkit.machine import atomic
from sslkit.runs.report.figures import PALETTE

KNN, SAME_K, LINEAR = METRICS = ("knn_top1", "knn_200_top1", "linear_top1")
NAMES = {KNN: "kNN", SAME_K: "kNN, k=200", LINEAR: "linear"}
EQUAL = 300.0
"""Seconds of training at which accuracies are compared."""
REACHED_IN = {"shufflenetv2": 75.0, "mobilenetv3_small": 75.0, "resnet18": 120.0}
"""Network of the contest -> seconds within which sslkit is to reach lightly's accuracy at EQUAL seconds."""
POINTS = 8.0
"""Percentage points of kNN by which sslkit is to be ahead at EQUAL seconds."""
TO_BEAT_FLOORS = (
    *("simclr", "byol", "mocov2", "barlowtwins", "vicreg"),
    *("empssl", "lejepa", "dcl", "dclw"),
)
"""Methods that are to beat random initialisation and raw pixels."""
PEERS = ("lightly", "lightly-adam")
TOLERANCE = 1.02
"""Share of the allowed time up to which a cell counts as within it, because a step that has begun is finished."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Cells that differ in nothing but the seed."""

    first: Record
    records: tuple[Record, ...]
    floors: dict[str, tuple[Record, ...]]
    """Random initialisation at the same seeds, and raw pixels; () where one is not measured."""

    @property
    def contestant(self) -> str:
        return str(self.first["contestant"])

    @property
    def method(self) -> str:
        return str(self.first["method"])

    @property
    def network(self) -> str:
        return str(self.first["network"])

    @property
    def seconds(self) -> float:
        return float(self.first["seconds"])

    @property
    def words(self) -> str:
        return " ".join(self.first["words"])

    @property
    def stem(self) -> str:
        return str(self.first["stem"])

    @property
    def place(self) -> tuple[str, str, str]:
        return self.method, self.network, self.stem

    def mean(self, metric: str = KNN) -> float:
        return statistics.fmean(record[metric] for record in self.records)

    @property
    def overtime(self) -> str:
        """Words on the time really spent if it was more than allowed, else nothing."""
        spent = max(record["seconds_trained"] for record in self.records)
        return f", but it took {spent:.0f} s" if spent > TOLERANCE * self.seconds else ""

    def floor(self, name: str, metric: str) -> float | None:
        """Return the mean accuracy of a floor, or None if it is not measured."""
        found = [record[metric] for record in self.floors[name]]
        return statistics.fmean(found) if found else None

    def not_beaten(self) -> list[str]:
        """Return the floors that kNN at the default k or the linear probe does not beat, or that are missing."""
        names = {RANDOM: "random initialisation", PIXELS: "raw pixels"}
        pairs = [(name, metric) for name in names for metric in (KNN, LINEAR)]
        return [
            f"{names[name]} ({NAMES[metric]})"
            for name, metric in pairs
            if (floor := self.floor(name, metric)) is None or self.mean(metric) <= floor
        ]


class Results:
    """Groups of a report, sorted."""

    def __init__(self, report: Record) -> None:
        self.report = report

    @cached_property
    def groups(self) -> list[Group]:
        cells = self.report["cells"]
        trained = sorted((cell for cell in cells.values() if cell["seconds"]), key=_order)
        return [self._group(tuple(found)) for _, found in groupby(trained, key=_order)]

    def _group(self, records: tuple[Record, ...]) -> Group:
        keys = [floor for record in records for floor in floors_of(_cell(record))]
        found = {
            name: tuple(
                self.report["cells"][key]
                for key in dict.fromkeys(floor.key for floor in keys if floor.contestant == name)
                if key in self.report["cells"]
            )
            for name in (RANDOM, PIXELS)
        }
        return Group(records[0], records, found)

    def contest(self) -> list[Group]:
        """Return the groups of both libraries, with the networks and stems that lightly was measured with."""
        contested = {group.place for group in self.groups if group.contestant in PEERS}
        return [group for group in self.groups if group.place in contested and not group.words]

    def methods(self) -> list[Group]:
        """Return all other groups: every method with the backbone's own stem, and those with further settings."""
        contest = self.contest()
        return [group for group in self.groups if group not in contest]


def _order(record: Record) -> tuple[Any, ...]:
    names = ("method", "network", "stem", "seconds", "contestant", "words")
    return tuple(tuple(record[name]) if name == "words" else record[name] for name in names)


def _cell(record: Record) -> Cell:
    fields = {name: record[name] for name in Cell.__dataclass_fields__}
    return Cell(**fields | {"words": tuple(record["words"])})


# --- targets ---


@dataclass(frozen=True)
class Verdict:
    """A target, with the measured values and True if it is met; None: not measured yet."""

    target: str
    concerns: str
    reached: str
    met: bool | None


def verdicts(results: Results) -> Iterator[Verdict]:
    """Yield the targets in order: equal accuracy sooner, more accuracy in equal time, floors beaten."""
    contest = [group for group in results.contest() if group.stem == "imagenet"]
    for judge in (_sooner, _ahead):
        for method in ("simclr", "byol"):
            for network in REACHED_IN:
                at = [group for group in contest if (group.method, group.network) == (method, network)]
                yield judge(f"{method}, {network}", network, at)
    for method in TO_BEAT_FLOORS:
        yield _beats_floors(method, results)


def best_peer(groups: Iterable[Group], seconds: float) -> Group | None:
    """Return the variant of lightly with the higher mean kNN accuracy after `seconds`, or None."""
    found = [g for g in groups if g.contestant in PEERS and g.seconds == seconds]
    return max(found, key=Group.mean, default=None)


def _level(group: Group) -> str:
    return f"{100 * group.mean():.1f} % (n={len(group.records)})"


def _ours(groups: Iterable[Group]) -> list[Group]:
    return sorted((g for g in groups if g.contestant == "sslkit"), key=lambda g: g.seconds)


def _sooner(concerns: str, network: str, at: list[Group]) -> Verdict:
    limit = REACHED_IN[network]
    target = f"lightly's kNN at {EQUAL:g} s in {limit:g} s or less"
    peer, ours = best_peer(at, EQUAL), _ours(at)
    if peer is None or not any(group.seconds <= limit for group in ours):
        return Verdict(target, concerns, "", None)
    level = peer.mean()
    reached = next((group for group in ours if group.mean() >= level), None)
    when = (
        f"at {reached.seconds:g} s: {_level(reached)}{reached.overtime}"
        if reached
        else f"not by {ours[-1].seconds:g} s"
    )
    met = any(group.mean() >= level and not group.overtime for group in ours if group.seconds <= limit)
    return Verdict(target, concerns, f"{peer.contestant} {_level(peer)}; sslkit {when}", met)


def _ahead(concerns: str, network: str, at: list[Group]) -> Verdict:
    target = f"kNN at {EQUAL:g} s {POINTS:g} points above lightly's"
    peer, ours = best_peer(at, EQUAL), [group for group in _ours(at) if group.seconds == EQUAL]
    if peer is None or not ours:
        return Verdict(target, concerns, "", None)
    points = 100 * (ours[0].mean() - peer.mean())
    values = f"{_level(ours[0])}{ours[0].overtime}, {peer.contestant} {_level(peer)}"
    met = points >= POINTS and not ours[0].overtime
    return Verdict(target, concerns, f"{points:+.1f} points: sslkit {values}", met)


def _beats_floors(method: str, results: Results) -> Verdict:
    target = f"above random initialisation and raw pixels within {EQUAL:g} s, kNN and linear"
    own = [g for g in results.methods() if g.method == method and g.stem == OWN and not g.words]
    found = [g for g in own if g.seconds <= EQUAL]
    if not found:
        return Verdict(target, method, "", None)
    # Of several times within the limit, that at which fewest floors stay unbeaten.
    best = {g.network: g for g in sorted(found, key=lambda g: -len(g.not_beaten()) - bool(g.overtime))}
    words = [f"{network}: {_above(g.not_beaten())}{g.overtime}" for network, g in sorted(best.items())]
    met = not any(g.not_beaten() or g.overtime for g in best.values())
    return Verdict(target, method, "; ".join(words), met)


def _above(lack: list[str]) -> str:
    return f"not above {', '.join(lack)}" if lack else "above both"


# --- the page ---


def write(report: Record, page: Path, chart: Path) -> None:
    """Write the page, and the chart if there is a contest to draw."""
    results = Results(report)
    link = None
    if results.contest():
        atomic.write_text(chart, as_svg(results))
        link = Path(os.path.relpath(chart, page.parent)).as_posix()
    atomic.write_text(page, as_markdown(report, link))


def as_markdown(report: Record, chart: str | None = None) -> str:
    """Return the page: protocol, targets, contest, methods, machines. chart: link to the chart; None: there is none."""
    results = Results(report)
    batch = report["data"].get("lightly_batch", lightly_example.BATCH)
    lines = [*_introduction(report), "## Targets", "", *_targets(results), ""]
    lines += ["## Beside lightly, in the same time", "", CONTEST.format(batch=batch), ""]
    if chart:
        lines += [f"![kNN accuracy against seconds of training]({chart})", ""]
    lines += [*_table(CONTEST_COLUMNS, results.contest()), *_contest_floors(results.contest()), ""]
    lines += ["## Every method", "", METHODS, "", *_table(METHODS_COLUMNS, results.methods()), ""]
    return "\n".join([*lines, *_remarks(report), *_machines(report)]).rstrip() + "\n"


INTRODUCTION = """\
Accuracy after equal training time. This page is written by `python benchmarks/learning.py --page` from what that
script has measured, which holds every seed's figures with command, settings, versions and hardware;
[benchmarks/README.md](../benchmarks/README.md) explains how to measure."""
DATA = """\
{name} at 32 px: {images:,} training images, without labels for pre-training and with them for kNN and the linear
probe, and {judged:,} {split} images to judge. All accuracies are top-1 in percent, mean ± standard deviation over n
seeds. The time is that of training, with the start of the first epoch and without evaluations. The default kNN is
{protocols}; chance is {chance}."""
CONTEST = """\
Both train the same network with the stem of ImageNet on the same files, each in a process of its own, in turns. sslkit
is `sslkit run method=METHOD backbone=NETWORK data=FOLDER` with nothing set but the stem, the time and the seed.
lightly is its own example for 32 px (SGD at 0.06 without momentum, batch {batch}, constant rate), with two
worker processes; `lightly-adam` has Adam at 0.001 in place of SGD. Targets compare with the better of the two."""
METHODS = """\
`sslkit run method=METHOD backbone=NETWORK data=FOLDER` with nothing set but the time and the seed; where a row has
settings, with these as well. Floors are the untrained network at the same seeds, and the pixels themselves.
`supervised` sees the labels: it is a reference, and no self-supervised method."""


def _introduction(report: Record) -> Iterator[str]:
    yield from ("# Results", "", INTRODUCTION, "")
    if report["data"]:
        protocols = dict.fromkeys(cell["knn_protocol"] for cell in report["cells"].values())
        chance = dict.fromkeys(f"{100 * cell['chance']:.1f} %" for cell in report["cells"].values())
        yield DATA.format(**report["data"], protocols="; ".join(protocols), chance=", ".join(chance))
        yield ""


def _targets(results: Results) -> Iterator[str]:
    yield from _heading("target", "of", "measured", "")
    signs = {True: "met", False: "**not met**", None: "not measured"}
    for verdict in verdicts(results):
        yield _row(verdict.target, verdict.concerns, verdict.reached, signs[verdict.met])


Column = tuple[str, Callable[[Group], str]]


def _spread(metric: str) -> Callable[[Group], str]:
    return lambda group: _mean_and_deviation(group.records, metric)


def _mean_and_deviation(records: Iterable[Record], metric: str, scale: float = 100, digits: int = 1) -> str:
    values = [scale * record[metric] for record in records]
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def _floor(name: str, metric: str) -> Callable[[Group], str]:
    return lambda group: _mean_and_deviation(group.floors[name], metric)


ACCURACIES: list[Column] = [(NAMES[metric], _spread(metric)) for metric in METRICS]
SPENT: list[Column] = [
    ("seconds spent", lambda group: _mean_and_deviation(group.records, "seconds_trained", 1, 0)),
    ("epochs", lambda group: _mean_and_deviation(group.records, "epochs", 1)),
    ("images/s", lambda group: _mean_and_deviation(group.records, "images_per_second", 1, 0)),
]
CONTEST_COLUMNS: list[Column] = [
    ("method", lambda group: group.method),
    ("network", lambda group: group.network),
    ("stem", lambda group: group.stem),
    ("seconds", lambda group: f"{group.seconds:g}"),
    ("", lambda group: group.contestant),
    ("n", lambda group: str(len(group.records))),
    *ACCURACIES,
    *SPENT,
]
METHODS_COLUMNS: list[Column] = [
    ("method", lambda group: group.method),
    ("network", lambda group: group.network),
    ("stem", lambda group: group.stem),
    ("seconds", lambda group: f"{group.seconds:g}"),
    ("settings", lambda group: f"`{group.words}`" if group.words else "as they come"),
    ("n", lambda group: str(len(group.records))),
    *ACCURACIES,
    ("random init: kNN", _floor(RANDOM, KNN)),
    ("linear", _floor(RANDOM, LINEAR)),
    ("raw pixels: kNN", _floor(PIXELS, KNN)),
    ("linear", _floor(PIXELS, LINEAR)),
    ("", lambda group: _above(group.not_beaten())),
    *SPENT[:2],
]


def _table(columns: list[Column], groups: list[Group]) -> Iterator[str]:
    if not groups:
        yield "Not measured yet."
        return
    yield from _heading(*(name for name, _ in columns))
    for group in groups:
        yield _row(*(text(group) for _, text in columns))


def _contest_floors(groups: list[Group]) -> Iterator[str]:
    """Yield a row for each floor of each network: its seeds are those of the contest."""
    seen: dict[tuple[str, ...], dict[str, Record]] = {}
    for group in groups:
        for name, records in group.floors.items():
            network = (group.network, group.stem) if name == RANDOM else ("", "")
            seen.setdefault((name, *network), {}).update({_cell(record).key: record for record in records})
    for (name, *network), records in sorted(seen.items()):
        accuracies = [_mean_and_deviation(records.values(), metric) for metric in METRICS]
        yield _row("", *network, "0", name, str(len(records)), *accuracies, *[""] * len(SPENT))


def _remarks(report: Record) -> Iterator[str]:
    for method, remark in sorted(report["remarks"].items()):
        yield f"- {method}: {remark}"
    if report["remarks"]:
        yield ""


def _machines(report: Record) -> Iterator[str]:
    if report["environments"]:
        yield from ("## Hardware and versions", "")
    for number, here in enumerate(report["environments"]):
        cells = sum(cell["environment"] == number for cell in report["cells"].values())
        versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
        device = here["gpu"] or f"{here['cpu']}, {here['threads']} threads"
        yield f"- {cells} cells: {device}; Python {here['python']}, {versions}; revision {here['git']}"


def _heading(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield f"|{'---|' * len(names)}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


# --- the chart ---


def as_svg(results: Results) -> str:
    """Return an SVG of kNN accuracy against seconds: a panel a method and network, a line a contestant, and floors."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    contest = results.contest()
    rows = sorted({group.method for group in contest})
    columns = sorted({(group.network, group.stem) for group in contest})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * len(columns) + 0.5, 2.7 * len(rows) + 0.5), layout="constrained")
        axes = figure.subplots(len(rows), len(columns), squeeze=False, sharey="col")
        for i, method in enumerate(rows):
            for j, (network, stem) in enumerate(columns):
                at = [group for group in contest if group.place == (method, network, stem)]
                _panel(axes[i, j], f"{method}, {network}, {stem} stem", at)
        figure.legend(*_legend(axes.flat), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return svg_of(figure)


def _legend(panels: Iterable[Any]) -> tuple[list[Any], list[str]]:
    """Return (handles, labels) of the lines of all panels, each label once."""
    found = {label: line for each in panels for line, label in zip(*each.get_legend_handles_labels())}
    return list(found.values()), list(found)


def _panel(axes: Any, title: str, groups: list[Group]) -> None:
    for colour, contestant in zip(PALETTE, ("sslkit", *PEERS)):
        line = sorted((g for g in groups if g.contestant == contestant), key=lambda g: g.seconds)
        values = [[100 * record[KNN] for record in g.records] for g in line]
        means = [statistics.fmean(each) for each in values]
        deviations = [statistics.stdev(each) if len(each) > 1 else 0 for each in values]
        if line:
            look = {"marker": "o", "markersize": 4, "capsize": 3, "color": colour}
            axes.errorbar([g.seconds for g in line], means, deviations, label=contestant, **look)
    for name, style in ((RANDOM, ":"), (PIXELS, "--")):
        floor = next((g.floor(name, KNN) for g in groups if g.floors[name]), None)
        if floor is not None:
            axes.axhline(100 * floor, color="#777777", linewidth=1, linestyle=style, label=name)
    axes.set_xscale("log")
    ticks = sorted({g.seconds for g in groups})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("kNN top-1, %")
    axes.spines[["top", "right"]].set_visible(False)
