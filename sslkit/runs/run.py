"""A run: its directory of settings, metrics, evaluations and checkpoints; files are replaced atomically."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.config.layers import Layer, Mistakes
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
    """A run on disk."""

    def __init__(self, path: Path, config: RunConfig, origins: dict[str, str]) -> None:
        self.path = path
        self.config = config
        self.origins = origins

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, resolved: Resolved) -> "Run":
        """Create the directory of a new run and write its settings and environment."""
        path = resolved.config.out or _free_path(resolved.config)
        run = cls(path, resolved.config, resolved.origins)
        path.mkdir(parents=True, exist_ok=True)
        run.keep_settings()
        atomic.write_json(path / ENVIRONMENT, environment() | {"origins": resolved.origins})
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open an existing run. Raises UserError if `path` holds none."""
        path = Path(path)
        check_is_run(path)
        mistakes = Mistakes()
        before = Layer("before the setting", {"drop_last": True})
        resolved = resolve_layers([before, read_recipe(path / CONFIG, mistakes)], mistakes)
        return cls(path, resolved.config, _read_json(path / ENVIRONMENT).get("origins", {}))

    def keep_settings(self) -> None:
        """Write the settings to config.yaml."""
        atomic.write_text(self.path / CONFIG, self.config.to_yaml())

    @property
    def backbone_file(self) -> Path:
        return self.path / "backbone.safetensors"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping per logging interval, in order: step, epoch, loss, lr, images_per_second, ..."""
        return _read_lines(self.path / METRICS)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One mapping per result, in order: epoch (0: random initialisation), evaluator, protocol, top1, ..."""
        return _read_lines(self.path / EVALUATIONS)

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest first; `epoch-0005+0012` is 12 steps after the fifth epoch."""
        return checkpoint.find_checkpoints(self.path / CHECKPOINTS)

    @property
    def verdict(self) -> list[str]:
        """A sentence for each sign that the run did not learn, the last one with its mend; [] if there is none."""
        from sslkit.runs.verdict import verdict

        return verdict(self.metrics, self.evaluations, self.derived.get("width"))

    def backbone(self) -> "Backbone":
        """Load the pre-trained backbone, as `sslkit.load` does."""
        from sslkit.backbones import load_backbone

        return load_backbone(self.backbone_file)

    def log_metrics(self, record: dict[str, Any]) -> None:
        _append(self.path / METRICS, record)

    def log_evaluation(self, record: dict[str, Any]) -> None:
        _append(self.path / EVALUATIONS, record)

    def discard_untrained(self) -> None:
        """Remove the directory if the run ended before it recorded any metrics or evaluations."""
        import shutil

        if not self.metrics and not self.evaluations:
            shutil.rmtree(self.path)

    def note(self, **derived: Any) -> None:
        """Store values that the run derived from its settings (image size, scaled learning rate, loader)."""
        file = self.path / ENVIRONMENT
        known = _read_json(file)
        atomic.write_json(file, known | {"derived": known.get("derived", {}) | derived})

    @property
    def derived(self) -> dict[str, Any]:
        """Values that the run derived from its settings, such as the image size and the scaled learning rate."""
        result: dict[str, Any] = _read_json(self.path / ENVIRONMENT).get("derived", {})
        return result

    def save_checkpoint(self, state: Checkpoint, name: str, keep: int) -> Path:
        """Write `checkpoints/<name>`; earlier ones are deleted, except the newest and every `keep` epochs."""
        path = self.path / CHECKPOINTS / name
        checkpoint.save_checkpoint(state, path, keep)
        return path

    def newest_checkpoint(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest undamaged checkpoint, and a message for every damaged one that was skipped."""
        return checkpoint.newest_checkpoint(self.path / CHECKPOINTS)

    def forget_after(self, step: int) -> None:
        """Drop metrics and evaluations after `step`, which a resumed run records again."""
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
