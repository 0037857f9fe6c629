"""Cache of extracted features on disk, for repeated evaluations of the same weights on the same images."""

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
"""Version of the cache; increased when extraction changes, so that old files are not used any more."""
ROOM = 4 * 2**30
"""Maximum size of the cache in bytes; the least recently used files beyond it are deleted."""


class FeatureCache:
    """Cached features of one network under given conditions: one file per set of images, named by a hash of its key."""

    def __init__(self, folder: Path, weights: str, conditions: list[Any]) -> None:
        """
        weights: result of `weights_digest`.
        conditions: everything else that determines the features (layer, image size, ...), JSON-serialisable.
        """
        self.folder = folder
        self.key = [FORMAT, weights, conditions]

    def path(self, store: "Store") -> Path:
        """Return the cache file for these images; it changes with the file that contains them and the selected rows."""
        stat = store.path.stat()
        rows = hashlib.blake2b(np.ascontiguousarray(store.rows).data, digest_size=10).hexdigest()
        images = [str(store.path.resolve()), stat.st_size, stat.st_mtime_ns, rows]
        return self.folder / f"{digest(*self.key, images)}.safetensors"

    def read(self, store: "Store", device: torch.device) -> Tensor | None:
        """Return features [N, width], or None if they are missing or cannot be read."""
        path = self.path(store)
        try:
            x = load_file(path, device=str(device))["features"]
            path.touch()
        except (OSError, SafetensorError, KeyError):
            return None
        return x

    def write(self, store: "Store", x: Tensor) -> None:
        """Store features, unless they are larger than the whole cache."""
        if x.nbytes > ROOM:
            return
        # A full disk, or another process that deletes files too, must not make the evaluation fail.
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
    """Return a hash of a network's structure and all its weights and buffers."""
    state = hashlib.blake2b(repr(net).encode(), digest_size=16)
    for name, value in net.state_dict().items():
        state.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()
