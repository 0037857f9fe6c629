"""A checkpoint of a run: enough to resume bit for bit."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: enough to go on bit for bit."""

    step: int
    """Optimizer steps done."""
    model: "dict[str, Tensor]"
    optimizer: "dict[str, Tensor]"
    state: dict[str, Any]
    """Everything else, as JSON."""


def load_checkpoint(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    for name, digest in state["sha256"].items():
        if _digest(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
    model, optimizer = (load_file(path / f"{part}.safetensors") for part in ("model", "optimizer"))
    return Checkpoint(state["step"], model, optimizer, state)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
