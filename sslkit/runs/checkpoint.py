"""Checkpoints of a run, from which it resumes bit-identically; without pickle, written atomically."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.machine import atomic
from sslkit.machine.files import UNREADABLE, reason
from sslkit.machine.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

TENSORS, STATE = ("model.safetensors", "optimizer.safetensors"), "state.json"


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
    with atomic.replacing(path) as folder:
        folder.mkdir()
        model = {k: t.detach().contiguous() for k, t in checkpoint.model.items()}
        for name, tensors in zip(TENSORS, (model, checkpoint.optimizer)):
            write_tensors(folder / name, tensors)
        digests = {name: _digest(folder / name) for name in TENSORS}
        # As it is read back: keys become text, tuples lists.
        state = json.loads(json.dumps({"step": checkpoint.step, "sha256": digests} | checkpoint.state))
        text = json.dumps(state | {"digest": _digest_of_state(state)}, indent=2)
        (folder / STATE).write_text(text, encoding="utf-8")
    _prune(path, keep)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises one of `sslkit.machine.files.UNREADABLE` if it is damaged."""
    state = read_state(path)
    for name in TENSORS:
        if _digest(path / name) != state["sha256"].get(name):
            raise ValueError(f"the checksum of {name} is wrong")
    model, optimizer = (read_tensors(path / name)[0] for name in TENSORS)
    return Checkpoint(state["step"], model, optimizer, state)


def read_state(path: Path) -> dict[str, Any]:
    """Return the state of a checkpoint without its tensors. Raises one of `UNREADABLE` if it is damaged."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    # Versions before the digest wrote none.
    if state.pop("digest", None) not in (None, _digest_of_state(state)):
        raise ValueError(f"the checksum of {STATE} is wrong")
    if type(state["step"]) is not int or not isinstance(state["sha256"], dict):
        raise ValueError(f"{STATE} has no step, or no checksums")
    found: dict[str, Any] = state
    return found


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
        except UNREADABLE as error:
            complaints.append(f"checkpoint {path} is damaged ({reason(error)}); using the one before it")
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


def _digest_of_state(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
