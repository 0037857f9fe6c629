"""A run: its directory of settings, metrics, evaluations and checkpoints, all written whole or not at all."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.config.layers import Mistakes
from sslkit.config.recipes import read_recipe
from sslkit.config.resolve import Resolved, resolve_layers
from sslkit.config.run import RunConfig
from sslkit.machine import atomic
from sslkit.machine.environment import environment
from sslkit.runs import checkpoint
from sslkit.runs.checkpoint import Checkpoint
from sslkit.runs.directory import (
    CONFIG,
    ENVIRONMENT,
    EVALUATIONS,
    METRICS,
    Record,
    check_is_run,
    read_mapping,
    read_records,
)

if TYPE_CHECKING:
    from sslkit.backbones import Backbone

CHECKPOINTS = "checkpoints"


class Run:
    """One run on disk, new or old."""

    def __init__(self, path: Path, config: RunConfig, origins: dict[str, str]) -> None:
        self.path = path
        self.config = config
        self.origins = origins

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, resolved: Resolved) -> "Run":
        """Make the directory of a new run and write what was asked for and where."""
        path = resolved.config.out or _free_path(resolved.config)
        run = cls(path, resolved.config, resolved.origins)
        path.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path / CONFIG, resolved.config.to_yaml())
        atomic.write_json(path / ENVIRONMENT, environment() | {"origins": resolved.origins})
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run. Raises UserError if `path` holds none."""
        path = Path(path)
        check_is_run(path)
        mistakes = Mistakes()
        layer = read_recipe(path / CONFIG, mistakes)
        resolved = resolve_layers([layer], mistakes)
        return cls(path, resolved.config, _read_json(path / ENVIRONMENT).get("origins", {}))

    @property
    def backbone_file(self) -> Path:
        return self.path / "backbone.safetensors"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping a logging interval, in order: step, epoch, loss, lr, images_per_second, ..."""
        return _read_lines(self.path / METRICS)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One mapping a result, in order: epoch (0: the random initialisation), evaluator, protocol, top1, ..."""
        return _read_lines(self.path / EVALUATIONS)

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest first; `epoch-0005+0012` is 12 steps past the fifth epoch."""
        return checkpoint.find_checkpoints(self.path / CHECKPOINTS)

    def backbone(self) -> "Backbone":
        """The pre-trained backbone, as `sslkit.load` gives it."""
        from sslkit.backbones import load_backbone

        return load_backbone(self.backbone_file)

    def log_metrics(self, record: dict[str, Any]) -> None:
        _append(self.path / METRICS, record)

    def log_evaluation(self, record: dict[str, Any]) -> None:
        _append(self.path / EVALUATIONS, record)

    def discard_untrained(self) -> None:
        """Remove the directory of a run that a mistake ended before it measured anything."""
        import shutil

        if not self.metrics and not self.evaluations:
            shutil.rmtree(self.path)

    def note(self, **derived: Any) -> None:
        """Keep values that the run worked out (image size, scaled rate, loader) beside what was asked for."""
        file = self.path / ENVIRONMENT
        known = _read_json(file)
        atomic.write_json(file, known | {"derived": known.get("derived", {}) | derived})

    @property
    def derived(self) -> dict[str, Any]:
        """What the run worked out from its settings, such as the image size and the scaled learning rate."""
        result: dict[str, Any] = _read_json(self.path / ENVIRONMENT).get("derived", {})
        return result

    def save_checkpoint(self, state: Checkpoint, name: str, keep: int) -> Path:
        """Write `checkpoints/<name>`; of those before it, epochs divisible by `keep` and the newest stay."""
        path = self.path / CHECKPOINTS / name
        checkpoint.save_checkpoint(state, path, keep)
        return path

    def newest_checkpoint(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest undamaged checkpoint, and a sentence for every damaged one passed over."""
        return checkpoint.newest_checkpoint(self.path / CHECKPOINTS)

    def forget_after(self, step: int) -> None:
        """Drop the lines that the steps after `step` will write again."""
        for name in (METRICS, EVALUATIONS):
            kept = [r for r in _read_lines(self.path / name) if r.get("step", 0) <= step]
            atomic.write_text(self.path / name, "".join(json.dumps(r) + "\n" for r in kept))


def _free_path(config: RunConfig) -> Path:
    data = Path(config.data.name).stem
    root = getattr(config.data.options, "root", None)
    name = f"{config.method.name}-{config.backbone.name}-{Path(root).resolve().stem if root else data}"
    base = Path("runs") / re.sub(r"[^\w.+-]+", "-", name)
    number = 1
    while (path := base if number == 1 else base.with_name(f"{base.name}-{number}")).exists():
        number += 1
    return path


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _read_lines(path: Path) -> list[Record]:
    return read_records(path, [])


def _read_json(path: Path) -> Record:
    return read_mapping(path, json.loads, [])
