"""Create a loader; every kind gives the same batches of uint8 images on the device.

The order is a pure function of (seed, epoch), so that a resumed run needs no saved generator state.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch

from sslkit.data.loaders.base import ImageBatch, Kind, Loader, _Order, _to_device
from sslkit.data.loaders.ffcv import FFCV, ffcv_missing
from sslkit.data.loaders.resident import Resident
from sslkit.data.loaders.threads import Threads
from sslkit.data.packing.store import Store
from sslkit.data.threads import ordered_map
from sslkit.errors import UserError
from sslkit.machine.environment import core_count
from sslkit.machine.memory import free_memory

SHARE_OF_MEMORY = 4
"""auto keeps the images on the device if they fit in one part of its free memory divided into this many parts."""


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
    drop_last: bool = True,
    log: Callable[[str], None] = print,
) -> "Loader":
    """Return a loader of shuffled batches of `batch_size` images for process `rank` of `world`.

    kind: auto is resident if the images fit in a quarter of the device's free memory, else ffcv if it is installed,
    else torch, which `log` explains in one line. workers: number of decoding threads (-1: all cores; auto: the same
    until `workers.decide` changes it). drop_last: leave out the last incomplete batch of an epoch; otherwise it is
    filled up with the epoch's first images. Raises UserError if the store is smaller than one batch of all processes,
    or if the requested kind cannot be used.
    """
    if batch_size * world > len(store):
        together = f" × {world} processes" if world > 1 else ""
        raise UserError(f"batch_size={batch_size}{together} is more than the {len(store)} images; lower it")
    device = torch.device(device)
    chosen, why = _choose(store, device, log) if kind == "auto" else (kind, "requested")
    _check_possible(chosen, store, device)
    order = _Order(len(store), batch_size, seed, rank, world, drop_last)
    loaders: dict[str, type[Loader]] = {"resident": Resident, "ffcv": FFCV, "torch": Threads}
    return loaders[chosen](store, order, device, core_count(workers), why)


def in_order(store: Store, *, batch_size: int, device: torch.device | str) -> Iterator[ImageBatch]:
    """Yield every image once, in the store's order, for evaluation; the last batch may be smaller."""
    device = torch.device(device)
    chunks = np.array_split(np.arange(len(store)), range(batch_size, len(store), batch_size))
    threads = core_count()
    for rows, pixels in zip(chunks, ordered_map(store.read, chunks, threads, ahead=threads + 1)):
        labels = None if store.labels is None else torch.from_numpy(store.labels[rows]).to(device)
        yield ImageBatch(_to_device(pixels, device).permute(0, 3, 1, 2), torch.from_numpy(rows).to(device), labels)


def _choose(store: Store, device: torch.device, log: Callable[[str], None]) -> tuple[str, str]:
    """Return (kind, reason) for auto."""
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
    log(f"decoding without FFCV, which is slower but gives the same batches: {missing}")
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


def _decoded_bytes(store: Store) -> int:
    return len(store) * store.size**2 * 3


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
