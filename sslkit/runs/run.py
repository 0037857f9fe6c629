"""A run: its directory of settings, metrics, evaluations and checkpoints; files are replaced atomically."""

import json
import os
import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.config.layers import Layer, Mistakes
from sslkit.config.recipes import read_recipe
from sslkit.config.resolve import Resolved, resolve_layers
from sslkit.config.run import RunConfig
from sslkit.machine import atomic
from sslkit.machine.atomic import as_json
from sslkit.machine.environment import environment
from sslkit.machine.files import writing
from sslkit.runs import checkpoint
from sslkit.runs.checkpoint import Checkpoint
from sslkit.runs.directory import (
    CONFIG,
    ENVIRONMENT,
    EVALUATIONS,
    METRICS,
    check_is_run,
    read_environment,
    read_evaluations,
    read_metrics,
    read_run,
)
from sslkit.runs.place import Place, claim
from sslkit.runs.progress import BACKBONE, CHECKPOINTS, Progress, progress
from sslkit.runs.settings import complete

if TYPE_CHECKING:
    from sslkit.backbones import Backbone


class Run:
    """A run on disk."""

    def __init__(self, path: Path, config: RunConfig, origins: dict[str, str]) -> None:
        self.path = path
        self.config = config
        self.origins = origins
        self.place = Place(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(cls, resolved: Resolved, place: Place | None = None) -> "Run":
        """Create the directory of a new run, claimed before or now, and write its settings and environment.

        Nobody holds the directory afterwards unless it was claimed before.
        """
        claimed = place or claim(resolved.config)
        run = cls(claimed.folder, resolved.config, resolved.origins)
        try:
            run.keep_settings()
            run._write(ENVIRONMENT, as_json(environment() | {"origins": resolved.origins}))
        finally:
            if place is None:
                claimed.release()
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open an existing run. Raises UserError if `path` holds none, or its config.yaml is damaged or incomplete."""
        path = Path(path)
        mistakes = Mistakes()
        resolved = resolve_layers([saved_settings(path, mistakes)], mistakes)
        return cls(path, resolved.config, read_environment(path, [])["origins"])

    def keep_settings(self) -> None:
        """Write the settings to config.yaml."""
        self._write(CONFIG, self.config.to_yaml())

    @property
    def backbone_file(self) -> Path:
        return self.path / BACKBONE

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping per logging interval, in order: step, epoch, loss, lr, images_per_second, ..."""
        return read_metrics(self.path, [])

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One mapping per result, in order: epoch (0: random initialisation), evaluator, protocol, top1, ..."""
        return [record for record in read_evaluations(self.path, []) if "epoch" in record]

    @property
    def remarks(self) -> list[str]:
        """One sentence about each thing in the run's files that cannot be read, and is left out."""
        return read_run(self.path).remarks

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
        self._append(METRICS, record)

    def log_evaluation(self, record: dict[str, Any]) -> None:
        self._append(EVALUATIONS, record)

    def discard_untrained(self) -> None:
        """Remove the directory if the run ended before it recorded any metrics or evaluations."""
        import shutil

        if not self.metrics and not self.evaluations:
            self.place.take()
            shutil.rmtree(self.path)
            self.place.release()

    def note(self, **derived: Any) -> None:
        """Store values that the run derived from its settings (image size, scaled learning rate, loader)."""
        known = read_environment(self.path, [])
        self._write(ENVIRONMENT, as_json(known | {"derived": known["derived"] | derived}))

    @property
    def derived(self) -> dict[str, Any]:
        """Values that the run derived from its settings, such as the image size and the scaled learning rate."""
        result: dict[str, Any] = read_environment(self.path, [])["derived"]
        return result

    @property
    def progress(self) -> Progress:
        """How far the run's weights have been trained."""
        return progress(self.path, self.config.epochs, self.metrics)

    def save_checkpoint(self, state: Checkpoint, name: str, keep: int) -> Path:
        """Write `checkpoints/<name>`; earlier ones are deleted, except the newest and every `keep` epochs."""
        path = self.path / CHECKPOINTS / name
        with self.written(path):
            # What is older than a checkpoint must not be lost in a power failure that spares the checkpoint.
            for log in (METRICS, EVALUATIONS):
                if (self.path / log).exists():
                    atomic.to_disk(self.path / log)
            checkpoint.save_checkpoint(state, path, keep)
        return path

    def newest_checkpoint(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest undamaged checkpoint, and a message for every damaged one that was skipped.

        Temporary files of processes that were killed are removed.
        """
        for folder in (self.path, self.path / "figures"):
            atomic.recover(folder)
        return checkpoint.newest_checkpoint(self.path / CHECKPOINTS)

    def forget_after(self, step: int) -> None:
        """Drop metrics and evaluations after `step`, which a resumed run records again."""
        for name, records in ((METRICS, self.metrics), (EVALUATIONS, self.evaluations)):
            kept = [r for r in records if r.get("step", 0) <= step]
            self._write(name, "".join(json.dumps(r) + "\n" for r in kept))

    @property
    def resume_command(self) -> str:
        return f"sslkit resume {shlex.quote(str(self.path))}"

    def written(self, path: Path) -> AbstractContextManager[None]:
        """Return a context for writing a file of the run: a full disk becomes a UserError that says how to go on."""
        return writing(path, f"make room there, then go on with: {self.resume_command}")

    def _write(self, name: str, text: str) -> None:
        with self.written(self.path / name):
            atomic.write_text(self.path / name, text)

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with self.written(self.path / name), (self.path / name).open("ab+") as file:
            # A line that was cut, by a full disk or a kill, must not take the next one with it.
            begun = file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            file.write(b"\n" * bool(begun) + json.dumps(record).encode() + b"\n")


def saved_settings(path: Path, mistakes: Mistakes) -> Layer:
    """Return the settings in the config.yaml of a run. Raises UserError if `path` holds no run."""
    check_is_run(path)
    return complete(read_recipe(path / CONFIG, mistakes), str(path / CONFIG), mistakes)
