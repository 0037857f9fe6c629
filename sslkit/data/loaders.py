"""Batches of uint8 images on the device, the same ones whichever way they come.

The order is a pure function of (seed, epoch): a run that resumes at a step needs no saved generator state.
"""

import contextlib
import queue
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.data.free_memory import free_memory
from sslkit.data.store import Store
from sslkit.data.threads import core_count, ordered_map
from sslkit.errors import UserError

Kind = Literal["auto", "resident", "ffcv", "torch"]
SHARE_OF_MEMORY = 4
"""auto keeps the images on the device when they fit in one part of this many of its free memory."""
CHUNK = 1024
"""Images decoded at a time to fill the device."""
SENT = 256
"""Steps whose row numbers are sent to the device at a time."""


class RawBatch(NamedTuple):
    """B images as they are stored, on the device."""

    images: Tensor
    """uint8 [B, 3, S, S]: a channels_last view of [B, S, S, 3]."""
    indices: Tensor
    """Row numbers of the store, int64 [B]."""
    labels: Tensor | None
    """Class numbers, int64 [B], -1 where unknown; None: the store has none."""


def make_loader(
    store: Store,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    kind: Kind = "auto",
    workers: int | Literal["auto"] = -1,
    rank: int = 0,
    world: int = 1,
    say: Callable[[str], None] = print,
) -> "Loader":
    """Shuffled batches of `batch_size` images for process `rank` of `world`.

    auto: resident where the images fit in a quarter of the device's free memory, else ffcv, else torch,
    which `say` explains in one line. `workers` decode (-1: as many as cores; auto: the same until
    `workers.decide` knows better). Raises UserError where the store is smaller than one batch of all
    processes, and where the kind asked for is not to be had.
    """
    if batch_size * world > len(store):
        together = f" × {world} processes" if world > 1 else ""
        raise UserError(f"batch_size={batch_size}{together} is more than the {len(store)} images; lower it")
    device = torch.device(device)
    chosen, why = _choose(store, device, say) if kind == "auto" else (kind, "asked for")
    _check_possible(chosen, store, device)
    order = _Order(len(store), batch_size, seed, rank, world)
    loaders: dict[str, type[Loader]] = {"resident": Resident, "ffcv": FFCV, "torch": Threads}
    return loaders[chosen](store, order, device, core_count(workers), why)


def in_order(store: Store, *, batch_size: int, device: torch.device | str) -> Iterator[RawBatch]:
    """Every image once, in the store's order, for evaluation; the last batch may be short."""
    device = torch.device(device)
    chunks = np.array_split(np.arange(len(store)), range(batch_size, len(store), batch_size))
    threads = core_count()
    for rows, pixels in zip(chunks, ordered_map(store.read, chunks, threads, ahead=threads + 1)):
        labels = None if store.labels is None else torch.from_numpy(store.labels[rows]).to(device)
        yield RawBatch(_to_device(pixels, device).permute(0, 3, 1, 2), torch.from_numpy(rows).to(device), labels)


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

    def epoch(self, epoch: int, start: int = 0) -> Iterator[RawBatch]:
        """Full batches of one epoch, from step `start` on; what fills no batch waits for another epoch."""
        for indices, pixels in self._steps(self.order.batches(epoch)[start:]):
            labels = None if self._labels is None else self._labels[indices]
            yield RawBatch(pixels.permute(0, 3, 1, 2), indices, labels)

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


class Resident(Loader):
    """All images decoded once and kept on the device: a batch is an index, and no step waits for data."""

    kind = "resident"

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
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
        # Waking torch's thread pool costs more than the copy, on a busy machine many times more.
        pixels = self._data.numpy()
        return (torch.from_numpy(pixels[rows]) for rows in batches)


class Threads(Loader):
    """Decoded by threads a few batches ahead; needs nothing but torch and simplejpeg."""

    kind = "torch"

    def _pixels(self, batches: NDArray[np.int64]) -> Iterator[Tensor]:
        decoded = ordered_map(self.store.read, batches, self.workers, ahead=self.workers + 2)
        return (_to_device(pixels, self.device) for pixels in decoded)


class FFCV(Loader):
    """Decoded by FFCV a few batches ahead. It decodes and nothing else: its augmentations write in place."""

    kind = "ffcv"

    @cached_property
    def _stream(self) -> Any:
        """Built at the first epoch, for it is built for one number of workers."""
        return _ffcv_loader(self.store, self.order.batch_size, self.workers)

    def _pixels(self, batches: NDArray[np.int64]) -> Iterator[Tensor]:
        order = _Fixed(self.store.rows[batches.reshape(-1)])
        self._stream.traversal_order, self._stream.first_traversal_order = order, order.rows
        ahead = iter(self._stream)
        try:
            for _ in batches:
                yield _to_device(_next_buffer(ahead), self.device, reused=True)
        finally:
            _stop(ahead)


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


class _Fixed:
    """FFCV's traversal order, reduced to rows that are already chosen."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.rows = rows

    def sample_order(self, epoch: int) -> NDArray[np.int64]:
        return self.rows


def import_ffcv() -> Any:
    """FFCV, with its hold on torch's threads loosened. Raises what its import raises.

    Importing it, building a loader and beginning an epoch each call torch.set_num_threads: with 1, then
    with the number of decoders, once even from a thread. The network would then train on that many.
    """
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ffcv.loader
            from ffcv.pipeline.compiler import Compiler
    finally:
        torch.set_num_threads(threads)

    from numba import set_num_threads as set_decoders

    def set_num_threads(cls: Any, n: int) -> None:
        cls.num_threads = n
        set_decoders(n)

    Compiler.set_num_threads = classmethod(set_num_threads)
    return ffcv


_COMPILED: list[Any] = []
"""What numba compiled is never given back: its finalizer prints a traceback when the collector gets there first."""


def _ffcv_loader(store: Store, batch_size: int, workers: int) -> Any:
    import_ffcv()
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader as FFCVLoader

    image = store.beton.image_field
    pipelines = {name: [SimpleRGBImageDecoder()] if name == image else None for name in store.beton.fields}
    threads = min(workers, core_count())
    stream = FFCVLoader(str(store.path), batch_size, num_workers=threads, os_cache=True, pipelines=pipelines)
    _COMPILED.append(stream.code)
    return stream


def _next_buffer(ahead: Any) -> NDArray[np.uint8]:
    """The next batch of FFCV's iterator; its own `next` waits for ever once its thread has died."""
    while True:
        try:
            result = ahead.output_queue.get(timeout=1)
        except queue.Empty:
            if ahead.is_alive() or not ahead.output_queue.empty():
                continue
            raise RuntimeError("FFCV's decoding thread has died (its traceback is above); use loader=torch") from None
        _, (pixels,) = result
        return pixels


def _stop(ahead: Any) -> None:
    """End FFCV's thread, also in the middle of an epoch: two of them in numba's pool can end the process."""
    ahead.iter_ixes = iter(())
    ahead.close()
    while ahead.is_alive():
        # It may be waiting for room in its queue, the last time without a limit.
        with contextlib.suppress(queue.Empty):
            ahead.output_queue.get(timeout=0.05)


def _to_device(pixels: NDArray[np.uint8], device: torch.device, reused: bool = False) -> Tensor:
    """`reused`: the array is a buffer that will be overwritten, so the tensor must not share its memory."""
    tensor = torch.from_numpy(pixels)
    if device.type == "cuda":
        # An explicit copy: FFCV's buffers are pinned already, so pin_memory() would hand out the buffer.
        pinned = torch.empty(tensor.shape, dtype=torch.uint8, pin_memory=True).copy_(tensor)
        return pinned.to(device, non_blocking=True)
    return tensor.clone() if reused and device.type == "cpu" else tensor.to(device)


def _choose(store: Store, device: torch.device, say: Callable[[str], None]) -> tuple[str, str]:
    """(kind, why) for auto."""
    needed, free = _decoded_bytes(store), free_memory(device)
    if needed * SHARE_OF_MEMORY <= free:
        return (
            "resident",
            f"{_megabytes(needed)} of images fit in a quarter of the {_megabytes(free)} free on {device}",
        )
    large = f"{_megabytes(needed)} of images are more than a quarter of the {_megabytes(free)} free on {device}"
    missing = ffcv_missing()
    if missing is None:
        return "ffcv", large
    say(f"decoding without FFCV, which is slower and gives the same batches: {missing}")
    return "torch", f"{large}, and FFCV is {missing}"


def _check_possible(kind: str, store: Store, device: torch.device) -> None:
    if kind == "ffcv" and (missing := ffcv_missing()):
        raise UserError(f"loader=ffcv: FFCV is {missing}; or use loader=auto")
    needed, free = _decoded_bytes(store), free_memory(device)
    if kind == "resident" and needed > free:
        raise UserError(
            f"loader=resident: the images take {_megabytes(needed)}, and {_megabytes(free)} are free on "
            f"{device}; use loader=auto or a smaller data.image_size"
        )


def ffcv_missing() -> str | None:
    """None where FFCV can be used; else why not, and the command that mends it."""
    try:
        import_ffcv()
    except Exception:
        from sslkit.doctor import ffcv_mend

        return ffcv_mend()
    return None


def _decoded_bytes(store: Store) -> int:
    return len(store) * store.size**2 * 3


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
