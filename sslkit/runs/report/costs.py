"""What a run cost: time, memory, energy, and the size of its network, from whatever the run has noted."""

import re
from statistics import median
from typing import Any

from sslkit.config.layers import leaves
from sslkit.runs.directory import RunFiles, is_number
from sslkit.runs.report.results import results

COSTS = re.compile(r"energy|kwh|co2|carbon|watt|power|hours|gflops|gmacs")
ELSEWHERE = frozenset({"skipped", "skipped_images", "parameters", "peak_memory_gib"})
"""Derived values that have a place of their own on the page."""
LABELS = {
    "hours": "hours in all, evaluations counted",
    "kwh": "kWh",
    "kg_co2e": "kg CO2e",
    "energy_basis": "how energy and CO2e were found",
    "megabytes": "MB on disk",
    "gflops": "GFLOPs of one image, two a multiply-add",
    "gmacs": "GMACs of one image (multiply-adds)",
}


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """(what, value) of everything known, in words."""
    found: list[tuple[str, str]] = []
    if run.metrics:
        found += _measured(run)
    if is_number(parameters := run.derived.get("parameters")):
        found.append(("parameters of the backbone", f"{parameters:,.0f}"))
    # What the evaluator `cost` measured is newer than what the run noted of the same name.
    known = {key: value for key, value in _derived(run).items() if COSTS.search(key)} | _cost_record(run)
    return found + [(_label(key), plain(value)) for key, value in known.items() if key not in ELSEWHERE]


def derived_facts(run: RunFiles) -> list[tuple[str, str]]:
    """What the run worked out from its settings, without what is a cost."""
    shown = {k: v for k, v in _derived(run).items() if not COSTS.search(k) and k not in ELSEWHERE}
    return [(_label(key), plain(value)) for key, value in shown.items()]


def cost(run: RunFiles, unit: str) -> float | None:
    """GFLOPs of one image, seconds of training or kWh of it; None where the run does not tell."""
    if unit == "seconds":
        found: Any = run.metrics[-1].get("seconds") if run.metrics else None
    elif unit == "kWh":
        found = run.derived.get("kwh")
    else:
        found = _cost_record(run).get("gflops", run.derived.get("gflops"))
    return float(found) if is_number(found) else None


def plain(value: Any) -> str:
    """A value as one reads it."""
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(plain, value)) if isinstance(value, list) else str(value)


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 10 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _label(key: str) -> str:
    return LABELS.get(key, key.replace("_", " "))


def _measured(run: RunFiles) -> list[tuple[str, str]]:
    seconds: Any = run.metrics[-1].get("seconds")
    memory = _numbers(run, "memory_gib")
    rates, waits = _numbers(run, "images_per_second"), _numbers(run, "data_wait")
    known = [
        ("training time, evaluations not counted", duration(seconds) if is_number(seconds) else ""),
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
    """The newest figures of the evaluator `cost`."""
    return next((results(record) for record in reversed(run.evaluations) if record["evaluator"] == "cost"), {})
