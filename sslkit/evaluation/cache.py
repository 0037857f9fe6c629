"""Extracted features on disk, so that the next evaluation of the same weights on the same images need not wait."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sslkit.machine.atomic import replacing
from sslkit.machine.cache import digest

if TYPE_CHECKING:
    from sslkit.data import Store

FORMAT = 2
"""Raised when the same weights and images begin to give other features, so that old files are not taken for new."""
ROOM = 4 * 2**30
"""Bytes that are kept; beyond them the files that were not used for longest go."""


class FeatureCache:
    """Features of one network under given conditions; a file a set of images, named after all that decides it."""

    def __init__(self, folder: Path, weights: str, conditions: list[Any]) -> None:
        """weights: of `weights_digest`; conditions: what else decides the features (layer, size, ...), as JSON."""
        self.folder = folder
        self.key = [FORMAT, weights, conditions]

    def path(self, store: "Store") -> Path:
        """The file for these images: another one where the file they are in, or the choice of rows, changes."""
        stat = store.path.stat()
        rows = hashlib.blake2b(np.ascontiguousarray(store.rows).data, digest_size=10).hexdigest()
        images = [str(store.path.resolve()), stat.st_size, stat.st_mtime_ns, rows]
        return self.folder / f"{digest(*self.key, images)}.safetensors"

    def read(self, store: "Store", device: torch.device) -> Tensor | None:
        """Features [N, width], or None where there are none, or none that can be read."""
        path = self.path(store)
        try:
            x = load_file(path, device=str(device))["features"]
            path.touch()
        except (OSError, SafetensorError, KeyError):
            return None
        return x

    def write(self, store: "Store", x: Tensor) -> None:
        """Keep them, unless they alone would fill the cache."""
        if x.nbytes > ROOM:
            return
        # A full disk, or another process that makes room too, must not cost the figures.
        with suppress(OSError, SafetensorError):
            with replacing(self.path(store)) as temporary:
                save_file({"features": x.cpu().contiguous()}, temporary)
            self._make_room()

    def _make_room(self) -> None:
        used = 0
        newest_first = sorted(((p.stat(), p) for p in self.folder.glob("*.safetensors")), key=lambda f: -f[0].st_mtime)
        for stat, path in newest_first:
            used += stat.st_size
            if used > ROOM:
                path.unlink(missing_ok=True)


def weights_digest(net: nn.Module) -> str:
    """A short name for a network's structure and all its weights and buffers."""
    state = hashlib.blake2b(repr(net).encode(), digest_size=16)
    for name, value in net.state_dict().items():
        state.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()
