"""Base class of loaders: shuffled batches of uint8 images on the device, identical for every kind of loader."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.data.packing.store import Store

Kind = Literal["auto", "resident", "ffcv", "torch"]


STEPS_PER_TRANSFER = 256
"""Steps whose row numbers are copied to the device at a time."""


class ImageBatch(NamedTuple):
    """A batch of B stored images, on the device."""

    images: Tensor
    """uint8 [B, 3, S, S]: a channels_last view of [B, S, S, 3]."""
    indices: Tensor
    """Row numbers in the store, int64 [B]."""
    labels: Tensor | None
    """Class numbers, int64 [B], -1 if unknown; None if the store has no labels."""


class Loader:
    """Base class of loaders; a subclass defines `_pixels`."""

    kind: str = ""
    """Value of the setting `loader` that selects this class."""

    def __init__(self, store: Store, order: "_Order", device: torch.device, workers: int, why: str) -> None:
        self.store, self.order, self.device = store, order, device
        self.workers = workers
        """Number of decoding threads; may be changed before the first epoch. Batches do not depend on it."""
        self.why = why
        """Reason for this kind of loader, as text."""
        self.steps_per_epoch = order.steps
        self._labels = None if store.labels is None else torch.from_numpy(store.labels).to(device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        """Yield the batches of one epoch, from step `start` on, all of the same size (see `_Order`)."""
        for indices, pixels in self._steps(self.order.batches(epoch)[start:]):
            labels = None if self._labels is None else self._labels[indices]
            yield ImageBatch(pixels.permute(0, 3, 1, 2), indices, labels)

    def _steps(self, batches: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (indices, pixels), both on the device, for every row of `batches`, int64 [steps, B]."""
        return zip(self._indices(batches), self._pixels(batches))

    def _indices(self, batches: NDArray[np.int64]) -> Iterator[Tensor]:
        """Yield the row numbers of each step, int64 [B] on the device."""
        # Not step by step, because each copy makes the host wait; not all at once, which for 10⁷ images is 80 MB.
        for start in range(0, len(batches), STEPS_PER_TRANSFER):
            yield from torch.from_numpy(batches[start : start + STEPS_PER_TRANSFER]).to(self.device)

    def _pixels(self, batches: NDArray[np.int64]) -> Iterator[Tensor]:
        """Yield the images of each step, uint8 [B, S, S, 3] on the device."""
        raise NotImplementedError(f"{type(self).__name__} defines no _pixels")


class _Order:
    """The order of images in each epoch, for one of several processes; a pure function of seed and epoch.

    All batches are full, because compiled networks and batch norm want equal batches: a last incomplete one is left
    out (`drop_last`), or filled up with the first images of the same epoch, which are then used twice.
    """

    def __init__(self, images: int, batch_size: int, seed: int, rank: int, world: int, drop_last: bool = True) -> None:
        self.images, self.batch_size, self.seed, self.rank, self.world = images, batch_size, seed, rank, world
        whole, rest = divmod(images, batch_size * world)
        self.steps = whole + (rest > 0 and not drop_last)

    def batches(self, epoch: int) -> NDArray[np.int64]:
        """Return the row numbers of each step, int64 [steps, batch_size]; processes share repeated images only."""
        seeds = np.random.SeedSequence([self.seed, epoch, 0x0DE2])
        shuffled = np.random.Generator(np.random.Philox(seeds)).permutation(self.images)
        used = np.resize(shuffled, self.steps * self.world * self.batch_size)
        return np.ascontiguousarray(used.reshape(self.steps, self.world, self.batch_size)[:, self.rank])


def _to_device(pixels: NDArray[np.uint8], device: torch.device, reused: bool = False) -> Tensor:
    """Copy an array to the device. reused: its buffer will be overwritten, so the tensor must not share its memory."""
    tensor = torch.from_numpy(pixels)
    if device.type == "cuda":
        # An explicit copy, because pin_memory() would return FFCV's buffers themselves, which are already pinned.
        pinned = torch.empty(tensor.shape, dtype=torch.uint8, pin_memory=True).copy_(tensor)
        return pinned.to(device, non_blocking=True)
    return tensor.clone() if reused and device.type == "cpu" else tensor.to(device)
