"""The run directory: settings, metrics, evaluations, checkpoints; nothing pickled, all written whole or not at all."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.config.layers import Mistakes
from sslkit.config.recipes import read_recipe
from sslkit.config.resolve import Resolved, resolve_layers
from sslkit.config.run import RunConfig
from sslkit.errors import UserError
from sslkit.machine import atomic
from sslkit.machine.environment import environment
from sslkit.runs.checkpoint import Checkpoint, _digest, load_checkpoint

if TYPE_CHECKING:
    from torch import nn


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
        atomic.write_text(path / "config.yaml", resolved.config.to_yaml())
        atomic.write_json(path / "environment.json", environment() | {"origins": resolved.origins})
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run. Raises UserError if `path` holds none."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path} holds no run: there is no {path / 'config.yaml'}")
        mistakes = Mistakes()
        layer = read_recipe(path / "config.yaml", mistakes)
        resolved = resolve_layers([layer], mistakes)
        return cls(path, resolved.config, _read_json(path / "environment.json").get("origins", {}))

    @property
    def backbone_file(self) -> Path:
        return self.path / "backbone.safetensors"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping a logging interval, in order: step, epoch, loss, lr, images_per_second, ..."""
        return _read_lines(self.path / "metrics.jsonl")

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One mapping a result, in order: epoch (0: the random initialisation), evaluator, protocol, top1, ..."""
        return _read_lines(self.path / "evaluations.jsonl")

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest first; `epoch-0005+0012` is 12 steps past the fifth epoch."""
        return sorted(p for p in (self.path / "checkpoints").glob("epoch-*") if p.is_dir())

    def backbone(self) -> "nn.Module":
        """The pre-trained backbone, as `sslkit.load` gives it."""
        from sslkit.backbones import load_backbone

        return load_backbone(self.backbone_file)

    def log_metrics(self, record: dict[str, Any]) -> None:
        _append(self.path / "metrics.jsonl", record)

    def log_evaluation(self, record: dict[str, Any]) -> None:
        _append(self.path / "evaluations.jsonl", record)

    def discard_untrained(self) -> None:
        """Remove the directory of a run that a mistake ended before it measured anything."""
        import shutil

        if not self.metrics and not self.evaluations:
            shutil.rmtree(self.path)

    def note(self, **derived: Any) -> None:
        """Keep values that the run worked out (image size, scaled rate, loader) beside what was asked for."""
        file = self.path / "environment.json"
        known = _read_json(file)
        atomic.write_json(file, known | {"derived": known.get("derived", {}) | derived})

    @property
    def derived(self) -> dict[str, Any]:
        """What the run worked out from its settings, such as the image size and the scaled learning rate."""
        return _read_json(self.path / "environment.json").get("derived", {})

    def save_checkpoint(self, checkpoint: Checkpoint, name: str, keep: int) -> Path:
        """Write `checkpoints/<name>`; of those before it, epochs divisible by `keep` and the newest stay."""
        from safetensors.torch import save_file

        path = self.path / "checkpoints" / name
        with atomic.replacing(path) as folder:
            folder.mkdir()
            save_file(
                {k: t.detach().contiguous() for k, t in checkpoint.model.items()},
                folder / "model.safetensors",
            )
            save_file(checkpoint.optimizer, folder / "optimizer.safetensors")
            digests = {f.name: _digest(f) for f in sorted(folder.iterdir())}
            state = {"step": checkpoint.step, "sha256": digests} | checkpoint.state
            (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        self._prune(path, keep)
        return path

    def _prune(self, newest: Path, keep: int) -> None:
        """The newest and the one before it stay, so that damage to one loses little."""
        import shutil

        for old in self.checkpoints[:-2]:
            match = re.fullmatch(r"epoch-(\d+)", old.name)
            if old != newest and not (match and keep and int(match[1]) % keep == 0):
                shutil.rmtree(old)

    def newest_checkpoint(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest undamaged checkpoint, and a sentence for every damaged one passed over.

        For the process that goes on with the run: it mends first what a kill left of a checkpoint being replaced.
        """
        atomic.recover(self.path / "checkpoints")
        complaints: list[str] = []
        for path in reversed(self.checkpoints):
            try:
                return load_checkpoint(path), complaints
            except (OSError, ValueError, KeyError) as error:
                complaints.append(f"checkpoint {path} is damaged ({error}); the one before it is used")
        return None, complaints

    def forget_after(self, step: int) -> None:
        """Drop the lines that the steps after `step` will write again."""
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            kept = [r for r in _read_lines(self.path / name) if r["step"] <= step]
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


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a last line that a kill cut short does not count."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
