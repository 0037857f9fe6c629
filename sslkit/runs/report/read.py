"""A run directory as the report sees it: whatever can be read, and a sentence for whatever cannot.

Nothing is validated against the installed components: a run of a plugin that is gone can still be shown.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sslkit.config.layers import Mistakes, flatten
from sslkit.errors import UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What a run left on disk."""

    path: Path
    settings: dict[str, Any]
    """Dotted keys, as `sslkit run --dry-run` prints them."""
    environment: Record
    metrics: list[Record]
    """Lines of metrics.jsonl whose step and epoch are numbers."""
    evaluations: list[Record]
    """Lines of evaluations.jsonl that name their evaluator; an epoch that is there is a number."""
    remarks: list[str] = field(default_factory=list)
    """What could not be read, a sentence each."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def origins(self) -> dict[str, Any]:
        return _mapping(self.environment.get("origins"))

    @property
    def derived(self) -> Record:
        """What the run worked out from its settings."""
        return _mapping(self.environment.get("derived"))

    def setting(self, key: str) -> str:
        """A setting in words; an em dash where the run does not tell."""
        value = self.settings.get(key)
        return "—" if value is None else str(value)

    def inside(self, path: Any) -> Path | None:
        """A file that a record names, where it is one within the run; a page must not carry others away."""
        if not isinstance(path, str) or "\0" in path:
            return None
        try:
            found = (self.path / path).resolve()
            return found if found.is_relative_to(self.path.resolve()) and found.is_file() else None
        except OSError:
            return None


def read_run(path: Path) -> RunFiles:
    """Everything readable of a run. Raises UserError where `path` holds none."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} holds no run: there is no {path / 'config.yaml'}")
    remarks: list[str] = []
    return RunFiles(
        path=path,
        settings=flatten(_load(path / "config.yaml", yaml.safe_load, remarks), Mistakes()),
        environment=_load(path / "environment.json", json.loads, remarks),
        metrics=_lines(path / "metrics.jsonl", _is_metric, remarks),
        evaluations=_lines(path / "evaluations.jsonl", _is_evaluation, remarks),
        remarks=remarks,
    )


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mapping(value: Any) -> Record:
    return value if isinstance(value, dict) else {}


def _load(path: Path, parse: Callable[[str], Any], remarks: list[str]) -> Record:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        remarks.append(f"{path.name} cannot be read.")
        return {}
    return found


def _lines(path: Path, wanted: Callable[[Record], bool], remarks: list[str]) -> list[Record]:
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
