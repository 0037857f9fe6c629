"""Costs of a run: time, memory, energy and size of the network, as far as the run has recorded them."""

import re
from collections.abc import Callable
from statistics import median
from typing import Any

from sslkit.config.layers import leaves
from sslkit.machine.units import duration, emissions, energy
from sslkit.runs.directory import RunFiles
from sslkit.runs.fields import is_number
from sslkit.runs.report.results import results

COSTS = re.compile(r"energy|kwh|co2|carbon|watt|power|hours|gflops|gmacs")
ELSEWHERE = frozenset({"skipped", "skipped_images", "parameters", "peak_memory_gib"})
"""Derived values that are shown elsewhere on the page."""
LABELS = {
    "hours": "time in total, with evaluations",
    "kwh": "energy",
    "kg_co2e": "emissions",
    "energy_basis": "basis of energy and CO2e",
    "megabytes": "MB on disk",
    "gflops": "GFLOPs per image (two per multiply-add)",
    "gmacs": "GMACs per image (multiply-adds)",
}

IN_WORDS: dict[str, Callable[[float], str]] = {
    "hours": lambda hours: duration(3600 * hours),
    "kwh": energy,
    "kg_co2e": emissions,
}


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return (label, value) of every known cost, as text."""
    found: list[tuple[str, str]] = []
    if run.metrics:
        found += _measured(run)
    if is_number(parameters := run.derived.get("parameters")):
        found.append(("parameters of the backbone", f"{parameters:,.0f}"))
    # Measurements of the evaluator `cost` are newer than the run's derived values of the same name.
    known = {key: value for key, value in _derived(run).items() if COSTS.search(key)} | _cost_record(run)
    return found + [(_label(key), _cost(key, value)) for key, value in known.items() if key not in ELSEWHERE]


def derived_facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return (label, value) of the values that the run derived from its settings, except costs."""
    shown = {k: v for k, v in _derived(run).items() if not COSTS.search(k) and k not in ELSEWHERE}
    return [(_label(key), plain(value)) for key, value in shown.items()]


def cost(run: RunFiles, unit: str) -> float | None:
    """Return GFLOPs per image, seconds or kWh of training; None if the run has not recorded it."""
    if unit == "seconds":
        found: Any = run.metrics[-1].get("seconds") if run.metrics else None
    elif unit == "kWh":
        found = run.derived.get("kwh")
    else:
        found = _cost_record(run).get("gflops", run.derived.get("gflops"))
    return float(found) if is_number(found) else None


def plain(value: Any) -> str:
    """Format a value for readers."""
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(plain, value)) if isinstance(value, list) else str(value)


def _cost(key: str, value: Any) -> str:
    """Format a cost in the unit that fits: hours of a short run in minutes or seconds."""
    return IN_WORDS[key](value) if key in IN_WORDS and is_number(value) else plain(value)


def _label(key: str) -> str:
    return LABELS.get(key, key.replace("_", " "))


def _measured(run: RunFiles) -> list[tuple[str, str]]:
    seconds: Any = run.metrics[-1].get("seconds")
    memory = _numbers(run, "memory_gib")
    rates, waits = _numbers(run, "images_per_second"), _numbers(run, "data_wait")
    known = [
        ("training time, without evaluations", duration(seconds) if is_number(seconds) else ""),
        ("images per second, median", rates and f"{median(rates):,.0f}"),
        ("share of time waiting for data, median", waits and f"{100 * median(waits):.1f} %"),
        ("peak memory", memory and f"{max(memory):.2f} GiB"),
    ]
    return [(what, value) for what, value in known if value]


def _numbers(run: RunFiles, key: str) -> list[float]:
    return [record[key] for record in run.metrics if is_number(record.get(key))]


def _derived(run: RunFiles) -> dict[str, Any]:
    return {k: v for name, value in run.derived.items() for k, v in leaves(str(name), value).items()}


def _cost_record(run: RunFiles) -> dict[str, float]:
    """Return the newest results of the evaluator `cost`."""
    return next((results(record) for record in reversed(run.evaluations) if record["evaluator"] == "cost"), {})
