"""Fields of what a run wrote: those of another kind than sslkit writes are left out, so that no reader meets them."""

import math
from typing import Any

Record = dict[str, Any]

TEXTS = frozenset({"evaluator", "protocol", "data", "split"})
MAPPINGS = frozenset({"settings", "floors"})
LISTS = frozenset({"files", "notes"})
DERIVED_NUMBERS = frozenset(
    {"images", "skipped", "image_size", "workers", "width", "parameters", "gflops", "steps_per_epoch", "peak_lr"}
    | {"processes", "hours", "kwh", "kg_co2e", "peak_memory_gib"}
)
"""Values in `derived` that are computed with."""
DERIVED_MAPPINGS = frozenset({"execution", "data"})
"""Values in `derived` that a resumed run compares with its own, or takes over."""


def is_number(value: Any) -> bool:
    """Return True if the value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def mapping(value: Any) -> Record:
    """Return the value if it is a mapping, else {}."""
    return value if isinstance(value, dict) else {}


def metric(record: Record) -> Record | None:
    """Return the numbers of a record of metrics, null where one was not finite; None without a step and an epoch."""
    if not (is_number(record.get("step")) and is_number(record.get("epoch"))):
        return None
    return {key: value for key, value in record.items() if value is None or is_number(value)}


def evaluation(record: Record) -> Record | None:
    """Return the fields of an evaluation that are of their kind; None without an evaluator, or with another epoch."""
    if not isinstance(record.get("evaluator"), str) or not is_number(record.get("epoch", 0)):
        return None
    return {"during_run": False} | {key: value for key, value in record.items() if _as_written(key, value)}


def environment(found: Record) -> Record:
    """Return a description of a machine and a run whose `derived` and `origins` are of their kinds."""
    derived = mapping(found.get("derived"))
    origins = {key: value for key, value in mapping(found.get("origins")).items() if isinstance(value, str)}
    return found | {"origins": origins, "derived": {k: v for k, v in derived.items() if _as_derived(k, v)}}


def _as_derived(key: str, value: Any) -> bool:
    if key in DERIVED_MAPPINGS:
        return isinstance(value, dict)
    return key not in DERIVED_NUMBERS or is_number(value)


def _as_written(key: str, value: Any) -> bool:
    if key in TEXTS:
        return isinstance(value, str)
    if key in MAPPINGS:
        return isinstance(value, dict)
    if key in LISTS:
        return isinstance(value, list)
    return isinstance(value, bool) or is_number(value)
