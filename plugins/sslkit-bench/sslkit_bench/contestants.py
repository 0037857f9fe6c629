"""sslkit's own contestants: the step of a run, its bound, its stages each alone, and its views."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslkit.data.loaders.base import RawBatch
from sslkit.data.threads import ordered_map
from sslkit.machine.devices import synchronize
from sslkit.methods.base import Batch
from sslkit.training.setup import Parts
from sslkit.training.step import rows_of, train_step, update
from sslkit_bench.clock import Contestant

STAGES = ("read", "decode", "transfer", "gather", "augment", "forward", "backward", "optimizer", "ema")
"""In the order of a step."""
BEFORE = ("read", "decode", "transfer")
"""Those that a resident loader is done with before the first step."""


class Step(Contestant):
    """Whole training steps, as `sslkit run` does them: batch, views, forward, backward, optimizer, `after_step`."""

    def __init__(self, name: str, parts: Parts, note: str = "") -> None:
        self.name, self.note = name, note
        self.images = parts.images_per_step
        self._parts = parts
        self._turns = count()
        self._number = 0

    def begin(self) -> None:
        self._batches = _batches(self._parts.loader, next(self._turns))

    def step(self) -> None:
        number = min(self._number, self._parts.steps - 1)
        raws = list(islice(self._batches, self._parts.config.accumulate))
        self._parts.schedule.set(number)
        train_step(self._parts, raws, number)
        self._number += 1

    def end(self) -> None:
        # Closed, a loader stops decoding ahead, which would cost the next contestant its cores.
        self._batches.close()


def _batches(loader: Any, first_epoch: int) -> Any:
    """Batches without end, from an epoch on."""
    for epoch in count(first_epoch):
        yield from loader.epoch(epoch, 0)


def bounded(parts: Parts, raw: RawBatch) -> Parts:
    """The same run with nothing left to do but the network: the loader gives `raw`, the recipe views made of it once.

    Network, optimizer and precision are the same objects. In micro-batches every piece gets the views of the first.
    """
    made = parts.execution.laid_out(parts.views(first_piece(parts, raw).images, _generator(parts)))
    return replace(parts, views=StoredViews(made), loader=StoredBatch(raw))


class StoredViews(nn.Module):
    """A recipe that gives the same views for any images."""

    def __init__(self, views: list[Tensor]) -> None:
        super().__init__()
        self.views = views

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        return self.views


class StoredBatch:
    """A loader that gives one and the same batch."""

    def __init__(self, raw: RawBatch) -> None:
        self.raw = raw

    def epoch(self, epoch: int, start: int = 0) -> Iterator[RawBatch]:
        while True:
            yield self.raw


def first_batch(parts: Parts) -> RawBatch:
    """The first batch of a run."""
    batches = _batches(parts.loader, 0)
    raw: RawBatch = next(batches)
    batches.close()
    return raw


def first_piece(parts: Parts, raw: RawBatch) -> RawBatch:
    """What of a batch becomes views at one time: in micro-batches the first of them."""
    return rows_of(raw, slice(parts.config.micro_batch))


class Views(Contestant):
    """The views of a batch that lies on the device, and nothing else."""

    name = "views"

    def __init__(self, parts: Parts, raw: RawBatch) -> None:
        self.images = len(raw.indices)
        self.note = f"sslkit's, in batch on {parts.device}"
        self._parts, self._raw = parts, raw
        self._generator = _generator(parts)

    def step(self) -> None:
        self._parts.views(self._raw.images, self._generator)


class Stages(Contestant):
    """Steps taken apart: after each stage the host waits for the device, so each has the machine for itself.

    Together they take longer than a step, whose stages overlap.
    """

    name = "stages"

    def __init__(self, parts: Parts) -> None:
        self.images = parts.images_per_step
        self._parts = parts
        self._store = parts.stores.pretrain
        self._threads = parts.loader.workers
        self._random = np.random.default_rng(parts.config.seed)
        self._generator = _generator(parts)
        self._turns = count()
        self.resident = parts.loader.kind == "resident"

    def begin(self) -> None:
        self._file = self._store.path.open("rb", buffering=0)
        self._batches = _batches(self._parts.loader, next(self._turns)) if self.resident else None

    def end(self) -> None:
        self._file.close()
        if self._batches:
            self._batches.close()

    def step(self) -> dict[str, float]:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._parts.execution.mark_step()
        for _ in range(self._parts.config.accumulate):
            raw = self._raw_batch()
            size = self._parts.config.micro_batch or len(raw.indices)
            for start in range(0, len(raw.indices), size):
                self._gradients(raw, slice(start, start + size))
        with self._stage("optimizer"):
            update(self._parts)
        with self._stage("ema"):
            self._parts.method.after_step(1 / self._parts.steps)
        return self._seconds

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        synchronize(self._parts.device)
        began = time.perf_counter()
        yield
        synchronize(self._parts.device)
        self._seconds[name] += time.perf_counter() - began

    def _raw_batch(self) -> RawBatch:
        rows = self._random.integers(len(self._store), size=self._parts.config.batch_size)
        with self._stage("read"):
            self._read(rows)
        with self._stage("decode"):
            pixels = self._decode(rows)
        with self._stage("transfer") if self._parts.device.type != "cpu" else nullcontext():
            images = self._send(pixels)
        if self._batches:
            with self._stage("gather"):
                raw: RawBatch = next(self._batches)
            return raw
        labels = None if self._store.labels is None else self._send(self._store.labels[rows])
        return RawBatch(images.permute(0, 3, 1, 2), self._send(rows), labels)

    def _read(self, rows: np.ndarray) -> None:
        """As many bytes of the file, from as many places, as the records of these images have on average."""
        size = self._store.path.stat().st_size // len(self._store.beton)
        for row in self._store.rows[rows].tolist():
            self._file.seek(row * size)
            self._file.read(size)

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        pieces = np.array_split(rows, self._threads)
        return np.concatenate(list(ordered_map(self._store.read, pieces, self._threads, self._threads + 1)))

    def _send(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._parts.device.type == "cuda":
            return tensor.pin_memory().to(self._parts.device, non_blocking=True)
        return tensor.to(self._parts.device)

    def _gradients(self, raw: RawBatch, rows: slice) -> None:
        parts = self._parts
        with self._stage("augment"):
            crops = parts.execution.laid_out(parts.views(raw.images[rows], self._generator))
        labels = raw.labels[rows] if parts.method.uses_labels and raw.labels is not None else None
        batch = Batch(crops, raw.indices[rows], labels)
        with self._stage("forward"), parts.execution.context(parts.device):
            loss = parts.trained(batch)["loss"]
        with self._stage("backward"):
            parts.scaler.scale(loss).backward()

    def notes(self) -> dict[str, str]:
        """What one must know of a stage to read its time."""
        once = "once, before the first step; " if self.resident else ""
        reader = " by sslkit's own reader" if self._parts.loader.kind == "ffcv" else ""
        notes = {
            "read": f"{once}from {self._store.path.name}, which the system may hold in memory",
            "decode": f"{once}{self._threads} threads{reader}, reading from memory",
            "transfer": once
            + ("through pinned memory" if self._parts.device.type != "cpu" else "0: the device is the CPU"),
            "gather": "a batch out of the images on the device",
        }
        if self._parts.config.micro_batch:
            notes["forward"] = "once a micro-batch; a step whose loss compares images embeds them twice"
        return notes

    def measured(self) -> list[str]:
        """The stages that this run has."""
        return [name for name in STAGES if name != "gather" or self.resident]

    def in_step(self, name: str) -> bool:
        """Whether each step of the run does it."""
        return not (self.resident and name in BEFORE)


def _generator(parts: Parts) -> torch.Generator:
    return torch.Generator(parts.device).manual_seed(parts.config.seed)
