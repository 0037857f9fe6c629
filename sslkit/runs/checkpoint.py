"""The checkpoints of a run: enough to resume bit for bit; nothing pickled, each written whole or not at all."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.machine import atomic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """The state of training after a step."""

    step: int
    """Optimizer steps done."""
    model: "dict[str, Tensor]"
    optimizer: "dict[str, Tensor]"
    state: dict[str, Any]
    """Everything else, as JSON."""


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first; `epoch-0005+0012` is 12 steps past the fifth epoch."""
    return sorted(p for p in folder.glob("epoch-*") if p.is_dir())


def save_checkpoint(checkpoint: Checkpoint, path: Path, keep: int) -> None:
    """Write `path`; of those before it in the same folder, epochs divisible by `keep` and the newest stay."""
    from safetensors.torch import save_file

    with atomic.replacing(path) as folder:
        folder.mkdir()
        model = {k: t.detach().contiguous() for k, t in checkpoint.model.items()}
        save_file(model, folder / "model.safetensors")
        save_file(checkpoint.optimizer, folder / "optimizer.safetensors")
        digests = {f.name: _digest(f) for f in sorted(folder.iterdir())}
        state = {"step": checkpoint.step, "sha256": digests} | checkpoint.state
        (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    _prune(path, keep)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises OSError, ValueError or KeyError if it is damaged."""
    from safetensors.torch import load_file

    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    for name, digest in state["sha256"].items():
        if _digest(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
    model, optimizer = (load_file(path / f"{part}.safetensors") for part in ("model", "optimizer"))
    return Checkpoint(state["step"], model, optimizer, state)


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint in `folder`, and a sentence for every damaged one passed over.

    For the process that resumes the run: first it mends what a kill left of a checkpoint being replaced.
    """
    atomic.recover(folder)
    complaints: list[str] = []
    for path in reversed(find_checkpoints(folder)):
        try:
            return load_checkpoint(path), complaints
        except (OSError, ValueError, KeyError) as error:
            complaints.append(f"checkpoint {path} is damaged ({error}); the one before it is used")
    return None, complaints


def _prune(newest: Path, keep: int) -> None:
    """The newest and the one before it stay, so that damage to one loses little."""
    for old in find_checkpoints(newest.parent)[:-2]:
        match = re.fullmatch(r"epoch-(\d+)", old.name)
        if old != newest and not (match and keep and int(match[1]) % keep == 0):
            shutil.rmtree(old)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
