"""Fine-tuning: the whole network trained with all or few labels, compared with training from scratch."""

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.augment.builtin import WeakAugmentation
from sslkit.errors import UserError
from sslkit.evaluation.evaluator import Evaluator, accuracy
from sslkit.evaluation.subject import Subject
from sslkit.nn.modes import own_random
from sslkit.nn.schedules import cosine


class Tuning(Evaluator):
    """Base of fine-tuning with all labels and with few (SimCLR, B.5).

    Nothing is selected on test images: the result is that of the last step.
    """

    class Config(Evaluator.Config):
        min_steps: int = Field(200, ge=1)
        """Least number of steps, whatever the epochs: a handful of images makes few steps per epoch."""
        steps: int | None = Field(None, ge=1)
        """Exact number of steps; null: given by the epochs and min_steps."""
        batch_size: int = Field(256, ge=2)
        """Images per step; if there are fewer, each is repeated with other random crops and flips."""
        lr: float = Field(0.05, gt=0)
        """Learning rate for a batch of 256, scaled linearly with the batch; it falls to zero along a cosine."""
        momentum: float = Field(0.9, ge=0, lt=1)
        """Nesterov momentum."""
        weight_decay: float = Field(0.0, ge=0)
        """Weight decay; the paper uses none."""

    config: Config

    def _settings(self) -> str:
        c = self.config
        least = f"{c.steps} steps" if c.steps else f"at least {c.min_steps} steps"
        lr = f"{c.lr * c.batch_size / 256:g} cosine"
        return (
            f"whole network, random crop and mirroring; SGD {least}, batch {c.batch_size}, "
            f"lr {lr}, Nesterov momentum {c.momentum:g}, weight decay {c.weight_decay:g}"
        )

    def _accuracy(self, subject: Subject, rows: NDArray[np.int64], epochs: float, initial: bool) -> dict[str, float]:
        """top1 and top5 on all test images after training on these rows of the labelled training images."""
        classes = max(len(subject.train.classes), len(subject.test.classes))
        with own_random(subject.seed), torch.enable_grad():
            backbone = subject.fresh(initial)
            network = nn.Sequential(backbone, _classifier(backbone, classes)).to(subject.device)
            self._train(network, subject, rows, epochs)
        logits, labels = subject.outputs(subject.test, network.eval())
        return accuracy(logits.topk(min(5, classes)).indices, labels, classes)

    def _train(self, network: nn.Module, subject: Subject, rows: NDArray[np.int64], epochs: float) -> None:
        c = self.config
        steps = c.steps or max(c.min_steps, round(epochs * len(rows) / c.batch_size))
        peak = c.lr * c.batch_size / 256
        optimizer = torch.optim.SGD(
            network.parameters(), peak, c.momentum, weight_decay=c.weight_decay, nesterov=c.momentum > 0
        )
        for step, (views, labels) in enumerate(self._batches(subject, rows, steps)):
            optimizer.param_groups[0]["lr"] = cosine(peak, 0.0, step / steps)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(views), labels)
            loss.backward()
            optimizer.step()
        if not loss.isfinite():
            raise UserError(f"fine-tuning diverged at lr={peak:g}; lower evaluators.{type(self).__name__.lower()}.lr")

    def _batches(self, subject: Subject, rows: NDArray[np.int64], steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield full batches of weakly augmented views, epoch after epoch, with every image equally often."""
        from sslkit.data import make_loader

        plain = subject.preprocessing
        weak = WeakAugmentation(WeakAugmentation.Config(), plain.image_size, plain.mean, plain.std).to(plain.device)
        repeats = math.ceil(self.config.batch_size / len(rows))
        images = subject.train.subset(np.tile(rows, repeats))
        loader = make_loader(
            images, batch_size=self.config.batch_size, seed=subject.seed, device=subject.device, log=lambda line: None
        )
        generator = torch.Generator(subject.device).manual_seed(subject.seed)
        for step in range(steps):
            epoch, place = divmod(step, loader.steps_per_epoch)
            if place == 0:
                batches = loader.epoch(epoch)
            batch = next(batches)
            yield weak(batch.images, generator)[0], cast(Tensor, batch.labels)


class Finetune(Tuning):
    """Fine-tuning of the whole network with all labels (SimCLR, B.2 and B.5), optionally also from scratch."""

    class Config(Tuning.Config):
        epochs: float = Field(30, gt=0)
        """Passes over the labelled training images."""
        scratch: bool = False
        """Also train the same network from random weights, for comparison: scratch_top1."""

    config: Config

    @property
    def protocol(self) -> str:
        return f"fine-tuned with all labels, {self.config.epochs:g} epochs: {self._settings()}"

    def __call__(self, subject: Subject) -> dict[str, float]:
        rows = _labelled_rows(subject)
        figures = self._accuracy(subject, rows, self.config.epochs, initial=False)
        if self.config.scratch:
            scratch = self._accuracy(subject, rows, self.config.epochs, initial=True)
            figures |= {f"scratch_{k}": v for k, v in scratch.items()}
        return figures


class Semi(Tuning):
    """Fine-tuning with 1 % and 10 % of the labels, compared with training from scratch (SimCLR, Table 7 and B.5).

    The labelled images are a class-balanced choice by seed, at least one per class; the 1 % are among the 10 %.
    """

    class Config(Tuning.Config):
        fractions: tuple[float, ...] = Field((0.01, 0.1), min_length=1)
        """Fractions of the labels."""
        epochs: tuple[float, ...] = Field((60, 30), min_length=1)
        """Passes over the labelled images, one number per fraction; the last one applies to further fractions."""
        scratch: bool = True
        """Also train the same network from random weights, for comparison."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.counts: list[int] = []

    @property
    def protocol(self) -> str:
        labels = [f"{100 * f:g} %" for f in self.config.fractions]
        if self.counts:
            labels = [f"{label} ({n})" for label, n in zip(labels, self.counts)]
        epochs = ", ".join(f"{e:g}" for e in self.config.epochs)
        return f"fine-tuned with {', '.join(labels)} of the labels, class-balanced, {epochs} epochs: {self._settings()}"

    def __call__(self, subject: Subject) -> dict[str, float]:
        figures: dict[str, float] = {}
        self.counts = []
        for i, fraction in enumerate(self.config.fractions):
            rows = balanced_subset(_labels(subject), fraction, subject.seed)
            self.counts.append(len(rows))
            epochs = self.config.epochs[min(i, len(self.config.epochs) - 1)]
            for kind in ("", "scratch_") if self.config.scratch else ("",):
                results = self._accuracy(subject, rows, epochs, initial=bool(kind))
                figures |= {f"semi_{100 * fraction:g}_{kind}{k}": v for k, v in results.items()}
        return figures


def balanced_subset(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """Return sorted rows of a fraction of the labels (-1: none), equally many of each class and at least one.

    A pure function of its arguments; a larger fraction includes the smaller ones of the same seed. A class that is too
    small contributes all its images.
    """
    classes = np.unique(labels[labels >= 0])
    each = max(1, round(fraction * np.count_nonzero(labels >= 0) / len(classes)))
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5E31])))
    return np.sort(np.concatenate([generator.permutation(np.flatnonzero(labels == c))[:each] for c in classes]))


def _labels(subject: Subject) -> NDArray[np.int64]:
    labels = subject.train.labels
    if labels is None or not (labels >= 0).any():
        raise UserError("there are no labels to fine-tune with; name labelled images with eval_data=")
    return labels


def _labelled_rows(subject: Subject) -> NDArray[np.int64]:
    return np.flatnonzero(_labels(subject) >= 0)


def _classifier(backbone: Any, classes: int) -> nn.Linear:
    """Return a classifier initialised at zero, so that the noise of the first step leaves the features unchanged."""
    classifier = nn.Linear(backbone.width, classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier
