"""Read run directories, damaged ones included: everything readable, and a remark about what is not.

Nothing is validated against the installed components, so that a run of an uninstalled plugin can still be shown.
`run.py` adds the typed configuration, and writes runs.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sslkit.config.layers import Mistakes, flatten
from sslkit.config.plain import guessed
from sslkit.config.reading import read_yaml
from sslkit.errors import UserError
from sslkit.machine.files import reason
from sslkit.runs.fields import Record, environment, evaluation, is_number, mapping, metric
from sslkit.runs.progress import Progress, progress

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
    """Records of metrics.jsonl whose step and epoch are numbers: `fields.metric`."""
    evaluations: list[Record]
    """Records of evaluations.jsonl that name their evaluator, and whose epoch, if any, is a number:
    `fields.evaluation`."""
    remarks: list[str] = field(default_factory=list)
    """One sentence about each thing that could not be read."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def origins(self) -> dict[str, str]:
        return mapping(self.environment.get("origins"))

    @property
    def derived(self) -> Record:
        """Values that the run derived from its settings."""
        return mapping(self.environment.get("derived"))

    @cached_property
    def progress(self) -> Progress:
        """How far the run's weights have been trained."""
        planned = self.settings.get("epochs")
        return progress(self.path, planned if is_number(planned) else None, self.metrics)

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
        environment=read_environment(path, remarks),
        metrics=read_metrics(path, remarks),
        evaluations=read_evaluations(path, remarks),
        remarks=remarks,
    )


def check_is_run(path: Path) -> None:
    """Raise UserError if `path` is not a run directory."""
    if not _is_file(path / CONFIG):
        raise UserError(f"{path} holds no run: there is no {path / CONFIG}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_environment(run: Path, remarks: list[str]) -> Record:
    """Read environment.json of a run; what cannot be read is left out, with a remark."""
    return environment(read_mapping(run / ENVIRONMENT, json.loads, remarks))


def read_metrics(run: Path, remarks: list[str]) -> list[Record]:
    """Read metrics.jsonl of a run; what cannot be read is left out, with a remark."""
    return read_records(run / METRICS, remarks, metric)


def read_evaluations(run: Path, remarks: list[str]) -> list[Record]:
    """Read evaluations.jsonl of a run; what cannot be read is left out, with a remark."""
    return read_records(run / EVALUATIONS, remarks, evaluation)


def read_mapping(path: Path, parse: Callable[[str], Any], remarks: list[str]) -> Record:
    """Read a file that holds one mapping; {} if the file is missing, or damaged, which adds a remark."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        remarks.append(f"{path.name} cannot be read.")
        return {}
    return found


def read_records(path: Path, remarks: list[str], checked: Callable[[Record], Record | None]) -> list[Record]:
    """Read the objects of a .jsonl file, in order, as `checked` returns them; None, or a damaged line, is left out.

    A remark counts the lines that are left out.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        remarks.append(f"{path.name} cannot be read ({reason(error)}).")
        return []
    parsed = (_record(line) for line in lines)
    records = [record for found in parsed if found is not None and (record := checked(found)) is not None]
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
