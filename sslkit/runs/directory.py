"""Read run directories, damaged ones included: everything readable, and a remark about what is not.

Nothing is validated against the installed components, so that a run of an uninstalled plugin can still be shown.
`run.py` adds the typed configuration, and writes runs.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslkit.config.layers import Mistakes, flatten
from sslkit.config.plain import guessed
from sslkit.config.reading import read_yaml
from sslkit.errors import UserError

Record = dict[str, Any]
CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory."""

    path: Path
    settings: dict[str, Any]
    """Settings by dotted key, as `sslkit run --dry-run` prints them."""
    environment: Record
    metrics: list[Record]
    """Records of metrics.jsonl whose step and epoch are numbers."""
    evaluations: list[Record]
    """Records of evaluations.jsonl that name their evaluator, and whose epoch, if any, is a number."""
    remarks: list[str] = field(default_factory=list)
    """One sentence about each thing that could not be read."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def origins(self) -> dict[str, Any]:
        return _mapping(self.environment.get("origins"))

    @property
    def derived(self) -> Record:
        """Values that the run derived from its settings."""
        return _mapping(self.environment.get("derived"))

    def setting(self, key: str) -> str:
        """Return a setting as text; an em dash if it is unknown."""
        value = self.settings.get(key)
        return "—" if value is None else str(value)

    def inside(self, path: Any) -> Path | None:
        """Return the file that a record names, or None unless it is inside the run: reports must not embed others."""
        if not isinstance(path, str) or "\0" in path:
            return None
        try:
            found = (self.path / path).resolve()
            return found if found.is_relative_to(self.path.resolve()) and found.is_file() else None
        except OSError:
            return None


def read_run(path: Path) -> RunFiles:
    """Read everything readable of a run. Raises UserError if `path` holds none."""
    check_is_run(path)
    remarks: list[str] = []
    return RunFiles(
        path=path,
        settings=guessed(flatten(read_mapping(path / CONFIG, read_yaml, remarks), Mistakes())),
        environment=read_mapping(path / ENVIRONMENT, json.loads, remarks),
        metrics=read_records(path / METRICS, remarks, _is_metric),
        evaluations=read_records(path / EVALUATIONS, remarks, _is_evaluation),
        remarks=remarks,
    )


def check_is_run(path: Path) -> None:
    """Raise UserError if `path` is not a run directory."""
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} holds no run: there is no {path / CONFIG}")


def is_number(value: Any) -> bool:
    """Return True if the value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mapping(value: Any) -> Record:
    return value if isinstance(value, dict) else {}


def read_mapping(path: Path, parse: Callable[[str], Any], remarks: list[str]) -> Record:
    """Read a file that holds one mapping; {} if the file is missing, or damaged, which adds a remark."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        remarks.append(f"{path.name} cannot be read.")
        return {}
    return found


def read_records(
    path: Path, remarks: list[str], wanted: Callable[[Record], bool] = lambda record: True
) -> list[Record]:
    """Read the `wanted` objects of a .jsonl file, in order; add a remark that counts damaged or unwanted lines."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    records = [record for line in lines if (record := _record(line)) is not None and wanted(record)]
    lost = sum(1 for line in lines if line.strip()) - len(records)
    if lost:
        remarks.append(f"{lost} of {len(lines)} lines of {path.name} cannot be read and are left out.")
    return records


def _record(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_metric(record: Record) -> bool:
    return is_number(record.get("step")) and is_number(record.get("epoch"))


def _is_evaluation(record: Record) -> bool:
    return isinstance(record.get("evaluator"), str) and ("epoch" not in record or is_number(record["epoch"]))
