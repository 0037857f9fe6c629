"""Tensors in safetensors files, whose header holds a digest of all that is in the file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from safetensors import safe_open

if TYPE_CHECKING:
    from torch import Tensor

DIGEST, HASH = "digest", "xxh3_128"
"""Key of the digest in a header, and what it begins with; files of earlier versions, and of others, have none."""


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", header: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors and a header of text, with a digest of both; the file's mode is what umask says."""
    from safetensors.torch import save_file

    header = {**(header or {})}
    path.touch()
    # safetensors writes a private file of its own, and renames it.
    mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, header | {DIGEST: _digest(tensors, header)})
    path.chmod(mode)


def read_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Return the tensors of a file, on the CPU, and its header without the digest.

    Raises OSError, SafetensorError, or ValueError where the digest is not that of the content.
    """
    with safe_open(path, framework="pt") as file:
        # The file is no mapping and has to be read through `keys`.
        names = file.keys()
        tensors, header = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    if not header.get(DIGEST, "").startswith(HASH):
        return tensors, header
    if header.pop(DIGEST) != _digest(tensors, header):
        raise ValueError("its content has changed since it was written: the digest is another")
    return tensors, header


def read_header(path: Path) -> dict[str, str]:
    """Return the header of a file without reading its tensors. Raises OSError or SafetensorError."""
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def _digest(tensors: "Mapping[str, Tensor]", header: Mapping[str, str]) -> str:
    import torch

    state: Any = xxhash.xxh3_128(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.flatten().view(torch.uint8).numpy())
    return f"{HASH}:{state.hexdigest()}"
