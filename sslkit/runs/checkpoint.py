"""Checkpoints of a run, from which it resumes bit-identically; without pickle, written atomically."""

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
    """Return the checkpoints in `folder`, oldest first; `epoch-0005+0012` is 12 steps after the fifth epoch."""
    return sorted(p for p in folder.glob("epoch-*") if p.is_dir())


def save_checkpoint(checkpoint: Checkpoint, path: Path, keep: int) -> None:
    """Write a checkpoint; earlier ones in its folder are deleted, except the newest and every `keep` epochs."""
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
            raise ValueError(f"the checksum of {name} is wrong")
    model, optimizer = (load_file(path / f"{name}.safetensors") for name in ("model", "optimizer"))
    return Checkpoint(state["step"], model, optimizer, state)


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest undamaged checkpoint in `folder`, and a message for every damaged one that was skipped.

    It first recovers checkpoints that were being replaced when a process was killed, so only the process that resumes
    the run may call it.
    """
    atomic.recover(folder)
    complaints: list[str] = []
    for path in reversed(find_checkpoints(folder)):
        try:
            return load_checkpoint(path), complaints
        except (OSError, ValueError, KeyError) as error:
            complaints.append(f"checkpoint {path} is damaged ({error}); using the one before it")
    return None, complaints


def _prune(newest: Path, keep: int) -> None:
    """Delete old checkpoints, except every `keep` epochs and the newest two, so that damage to one loses little."""
    for old in find_checkpoints(newest.parent)[:-2]:
        match = re.fullmatch(r"epoch-(\d+)", old.name)
        if old != newest and not (match and keep and int(match[1]) % keep == 0):
            shutil.rmtree(old)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
