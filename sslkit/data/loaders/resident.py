"""Loader that decodes all images once and keeps them on the device."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.data.loaders.base import Loader
from sslkit.data.threads import ordered_map

CHUNK = 1024
"""Images that are decoded at a time when the loader is created."""


class Resident(Loader):
    """Loader that keeps all decoded images on the device: batches are gathered by index, so no step waits for data."""

    kind = "resident"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        size = self.store.size
        self._data = torch.empty((len(self.store), size, size, 3), dtype=torch.uint8, device=self.device)
        starts = range(0, len(self.store), CHUNK)
        chunks = [np.arange(s, min(s + CHUNK, len(self.store))) for s in starts]
        for s, pixels in zip(starts, ordered_map(self.store.read, chunks, self.workers, self.workers + 1)):
            self._data[s : s + len(pixels)] = torch.from_numpy(pixels).to(self.device)

    def _steps(self, batches: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        if self.device.type == "cpu":
            return super()._steps(batches)
        return ((indices, self._data.index_select(0, indices)) for indices in self._indices(batches))

    def _pixels(self, batches: NDArray[np.int64]) -> Iterator[Tensor]:
        # numpy's single-threaded copy, because waking torch's thread pool takes longer than the copy itself.
        pixels = self._data.numpy()
        return (torch.from_numpy(pixels[rows]) for rows in batches)
