"""sslkit's own contestants: the step of a run, its upper bound, its stages in isolation, and its views."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslkit.data.loaders.base import ImageBatch
from sslkit.data.threads import ordered_map
from sslkit.machine.stopwatch import Stopwatch
from sslkit.methods.base import Batch
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import rows_of, train_step, update
from sslkit_bench.clock import Contestant

STAGES = ("read", "decode", "transfer", "gather", "augment", "forward", "backward", "optimizer", "ema")
"""Stages in the order of a step."""
BEFORE = ("read", "decode", "transfer")
"""Stages that a resident loader completes before the first step."""


class Step(Contestant):
    """Whole training steps, as in `sslkit run`: batch, views, forward, backward, optimizer, `after_step`."""

    def __init__(self, name: str, setup: TrainingSetup, note: str = "") -> None:
        self.name, self.note = name, note
        self.images = setup.images_per_step
        self._setup = setup
        self._turns = count()
        self._number = 0

    def begin(self) -> None:
        self._batches = _batches(self._setup.loader, next(self._turns))

    def step(self) -> None:
        number = min(self._number, self._setup.steps - 1)
        image_batches = list(islice(self._batches, self._setup.config.accumulate))
        self._setup.schedule.set(number)
        train_step(self._setup, image_batches, number)
        self._number += 1

    def end(self) -> None:
        # Stop the loader from decoding ahead, which would take cores from the next contestant.
        self._batches.close()


def _batches(loader: Any, first_epoch: int) -> Any:
    """Yield batches endlessly, starting with an epoch."""
    for epoch in count(first_epoch):
        yield from loader.epoch(epoch, 0)


def bounded(setup: TrainingSetup, image_batch: ImageBatch) -> TrainingSetup:
    """Return the setup of the upper bound: training on one batch of images, whose views are made once.

    Method, optimizer and execution are shared with `setup`. With micro-batches, all of them get the views of the first.
    """
    made = setup.execution.laid_out(setup.augmentation(first_micro_batch(setup, image_batch).images, _generator(setup)))
    return replace(setup, augmentation=StoredViews(made), loader=StoredBatch(image_batch))


class StoredViews(nn.Module):
    """An augmentation that returns the same views for any images."""

    def __init__(self, views: list[Tensor]) -> None:
        super().__init__()
        self.views = views

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        return self.views


class StoredBatch:
    """A loader that always returns the same batch."""

    def __init__(self, image_batch: ImageBatch) -> None:
        self.batch = image_batch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        while True:
            yield self.batch


def first_batch(setup: TrainingSetup) -> ImageBatch:
    """Return the first batch of a run."""
    batches = _batches(setup.loader, 0)
    image_batch: ImageBatch = next(batches)
    batches.close()
    return image_batch


def first_micro_batch(setup: TrainingSetup, image_batch: ImageBatch) -> ImageBatch:
    """Return the images of a batch whose views are made together: its first micro-batch, or all of it."""
    return rows_of(image_batch, slice(setup.config.micro_batch))


class ViewsContestant(Contestant):
    """Augmentation alone, on a batch that is already on the device."""

    name = "views"

    def __init__(self, setup: TrainingSetup, image_batch: ImageBatch) -> None:
        self.images = len(image_batch.indices)
        self.note = f"sslkit's augmentation, batched, on {setup.device}"
        self._setup, self._batch = setup, image_batch
        self._generator = _generator(setup)

    def step(self) -> None:
        self._setup.augmentation(self._batch.images, self._generator)


class Stages(Contestant):
    """The stages of a step in isolation: the host waits for the device after each stage, so that none overlap.

    Together they take longer than a step, in which stages overlap.
    """

    name = "stages"

    def __init__(self, setup: TrainingSetup) -> None:
        self.images = setup.images_per_step
        self._setup = setup
        self._store = setup.stores.pretrain
        self._threads = setup.loader.workers
        self._random = np.random.default_rng(setup.config.seed)
        self._generator = _generator(setup)
        self._turns = count()
        self.resident = setup.loader.kind == "resident"

    def begin(self) -> None:
        self._file = self._store.path.open("rb", buffering=0)
        self._batches = _batches(self._setup.loader, next(self._turns)) if self.resident else None

    def end(self) -> None:
        self._file.close()
        if self._batches:
            self._batches.close()

    def step(self) -> dict[str, float]:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._setup.execution.mark_step()
        for _ in range(self._setup.config.accumulate):
            image_batch = self._load_batch()
            size = self._setup.config.micro_batch or len(image_batch.indices)
            for start in range(0, len(image_batch.indices), size):
                self._gradients(image_batch, slice(start, start + size))
        with self._stage("optimizer"):
            update(self._setup)
        with self._stage("ema"):
            self._setup.method.after_step(1 / self._setup.steps)
        return self._seconds

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        with Stopwatch(self._setup.device) as watch:
            yield
        self._seconds[name] += watch.seconds

    def _load_batch(self) -> ImageBatch:
        rows = self._random.integers(len(self._store), size=self._setup.config.batch_size)
        with self._stage("read"):
            self._read(rows)
        with self._stage("decode"):
            pixels = self._decode(rows)
        with self._stage("transfer") if self._setup.device.type != "cpu" else nullcontext():
            images = self._send(pixels)
        if self._batches:
            with self._stage("gather"):
                image_batch: ImageBatch = next(self._batches)
            return image_batch
        labels = None if self._store.labels is None else self._send(self._store.labels[rows])
        return ImageBatch(images.permute(0, 3, 1, 2), self._send(rows), labels)

    def _read(self, rows: np.ndarray) -> None:
        """Read as many bytes from as many places of the file as the records of these images take on average."""
        size = self._store.path.stat().st_size // len(self._store.beton)
        for row in self._store.rows[rows].tolist():
            self._file.seek(row * size)
            self._file.read(size)

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        shares = np.array_split(rows, self._threads)
        return np.concatenate(list(ordered_map(self._store.read, shares, self._threads, self._threads + 1)))

    def _send(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._setup.device.type == "cuda":
            return tensor.pin_memory().to(self._setup.device, non_blocking=True)
        return tensor.to(self._setup.device)

    def _gradients(self, image_batch: ImageBatch, rows: slice) -> None:
        setup = self._setup
        with self._stage("augment"):
            views = setup.execution.laid_out(setup.augmentation(image_batch.images[rows], self._generator))
        labels = image_batch.labels[rows] if setup.method.uses_labels and image_batch.labels is not None else None
        batch = Batch(views, image_batch.indices[rows], labels)
        with self._stage("forward"), setup.execution.context(setup.device):
            loss = setup.trained(batch)["loss"]
        with self._stage("backward"):
            setup.scaler.scale(loss).backward()

    def notes(self) -> dict[str, str]:
        """Return remarks that are needed to interpret the times, by stage."""
        once = "once, before the first step; " if self.resident else ""
        reader = " by sslkit's own reader" if self._setup.loader.kind == "ffcv" else ""
        notes = {
            "read": f"{once}from {self._store.path.name}, which the system may have cached in memory",
            "decode": f"{once}{self._threads} threads{reader}, reading from memory",
            "transfer": once
            + ("through pinned memory" if self._setup.device.type != "cpu" else "0: the device is the CPU"),
            "gather": "a batch from the images on the device",
        }
        if self._setup.config.micro_batch:
            notes["forward"] = "once per micro-batch; a step whose loss compares images embeds them twice"
        return notes

    def measured(self) -> list[str]:
        """Return the stages that this run has."""
        return [name for name in STAGES if name != "gather" or self.resident]

    def in_step(self, name: str) -> bool:
        """Return True if every step of the run includes the stage."""
        return not (self.resident and name in BEFORE)


def _generator(setup: TrainingSetup) -> torch.Generator:
    return torch.Generator(setup.device).manual_seed(setup.config.seed)
