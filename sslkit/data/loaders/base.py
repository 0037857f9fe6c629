"""The contract of a loader: shuffled batches of uint8 images on the device, the same ones from every kind of loader."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.data.packing.store import Store

Kind = Literal["auto", "resident", "ffcv", "torch"]


SENT = 256
"""Steps whose row numbers are sent to the device at a time."""


class ImageBatch(NamedTuple):
    """B images as they are stored, on the device."""

    images: Tensor
    """uint8 [B, 3, S, S]: a channels_last view of [B, S, S, 3]."""
    indices: Tensor
    """Row numbers of the store, int64 [B]."""
    labels: Tensor | None
    """Class numbers, int64 [B], -1 where unknown; None: the store has none."""


class Loader:
    """Shuffled batches, one epoch after another."""

    kind: str = ""

    def __init__(self, store: Store, order: "_Order", device: torch.device, workers: int, why: str) -> None:
        self.store, self.order, self.device = store, order, device
        self.workers = workers
        """Threads that decode; may be changed before the first epoch. The batches are the same for any number."""
        self.why = why
        """Why this kind, in words."""
        self.steps_per_epoch = order.steps
        self._labels = None if store.labels is None else torch.from_numpy(store.labels).to(device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        """Full batches of one epoch, from step `start` on; what fills no batch waits for another epoch."""
        for indices, pixels in self._steps(self.order.batches(epoch)[start:]):
            labels = None if self._labels is None else self._labels[indices]
            yield ImageBatch(pixels.permute(0, 3, 1, 2), indices, labels)

    def _steps(self, batches: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, pixels), both on the device, for every row of `batches`, int64 [steps, B]."""
        return zip(self._indices(batches), self._pixels(batches))

    def _indices(self, batches: NDArray[np.int64]) -> Iterator[Tensor]:
        """int64 [B] on the device, a step."""
        # Neither step by step, for each copy makes the host wait, nor all at once: of 10⁷ images that is 80 MB.
        for start in range(0, len(batches), SENT):
            yield from torch.from_numpy(batches[start : start + SENT]).to(self.device)

    def _pixels(self, batches: NDArray[np.int64]) -> Iterator[Tensor]:
        """uint8 [B, S, S, 3] on the device, a step."""
        raise NotImplementedError(f"{type(self).__name__} defines no _pixels")


class _Order:
    """Which images make up which batch of which epoch, for one process of several."""

    def __init__(self, images: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.images, self.batch_size, self.seed, self.rank, self.world = images, batch_size, seed, rank, world
        self.steps = images // (batch_size * world)

    def batches(self, epoch: int) -> NDArray[np.int64]:
        """int64 [steps, batch_size]; the processes' parts do not overlap."""
        seeds = np.random.SeedSequence([self.seed, epoch, 0x0DE2])
        shuffled = np.random.Generator(np.random.Philox(seeds)).permutation(self.images)
        used = shuffled[: self.steps * self.world * self.batch_size]
        return np.ascontiguousarray(used.reshape(self.steps, self.world, self.batch_size)[:, self.rank])


def _to_device(pixels: NDArray[np.uint8], device: torch.device, reused: bool = False) -> Tensor:
    """`reused`: the array is a buffer that will be overwritten, so the tensor must not share its memory."""
    tensor = torch.from_numpy(pixels)
    if device.type == "cuda":
        # An explicit copy: FFCV's buffers are pinned already, so pin_memory() would hand out the buffer.
        pinned = torch.empty(tensor.shape, dtype=torch.uint8, pin_memory=True).copy_(tensor)
        return pinned.to(device, non_blocking=True)
    return tensor.clone() if reused and device.type == "cpu" else tensor.to(device)
