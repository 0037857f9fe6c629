"""The contract of an evaluator, and the subject it judges: a backbone's features of labelled images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.backbones.layers import tap
from sslkit.errors import UserError
from sslkit.evaluation.cache import FeatureCache, weights_digest
from sslkit.machine.precision import PRECISIONS
from sslkit.nn.modes import eval_mode, own_random

if TYPE_CHECKING:
    from sslkit.data import Store

LAYER_WIDTH = 9000
"""About how many numbers of an earlier layer's map are kept (Goyal et al. 2019, section 4.2)."""


@dataclass(frozen=True)
class Features:
    """Features and class numbers of the labelled images, on the device."""

    train_x: Tensor
    """float32 [N, width]."""
    train_y: Tensor
    """int64 [N], 0 to classes - 1."""
    test_x: Tensor
    """float32 [M, width]."""
    test_y: Tensor
    """int64 [M]: for the score alone, never to choose anything."""
    classes: int
    """Number of classes."""


class Subject:
    """What is judged: a frozen backbone and labelled images, whose features are extracted once for all evaluators.

    Pictures and sentences that evaluators leave in it become part of their record.
    """

    def __init__(
        self,
        backbone: nn.Module,
        train: "Store",
        test: "Store",
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        precision: str = "fp32",
        seed: int = 0,
        batch_size: int = 256,
        initial: Callable[[], nn.Module] | None = None,
        head: Callable[[], nn.Module | None] | None = None,
        folder: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        """`mean` and `std` are of images in 0..1; `precision` is fp32, bf16 or fp16 (autocast).

        initial: makes the backbone anew, with random weights. head: gives the method's projection head.
        folder: where pictures go; None draws none. cache: where features are kept; None keeps none.
        """
        self.backbone = backbone
        self.train, self.test = train, test
        self.image_size = image_size
        self.device = torch.device(device)
        self.mean, self.std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (mean, std))
        self.autocast = PRECISIONS[precision]
        self.seed = seed
        self.batch_size = batch_size
        self.files: list[dict[str, str]] = []
        """What was attached since `begin`: {"path": relative to the folder, "alt": text alternative}."""
        self.notes: list[str] = []
        """Sentences since `begin`."""
        self._initial, self._make_head = initial, head
        self._folder, self._cache = folder, cache
        self._name = ""
        self._features: dict[str | None, Features] = {}

    @property
    def features(self) -> Features:
        """Features in eval mode of one plain view an image; images without a label are left out.

        Raises UserError where a split has no labels, or where features are not finite.
        """
        return self.features_of(None)

    def features_of(self, layer: str | None) -> Features:
        """The same of the backbone's layer of that name, its map averaged over a grid so that about 9000 remain.

        None is the backbone itself. Raises UserError where there is no such layer.
        """
        if layer not in self._features:
            kept = FeatureCache(self._cache, self._weights, self._conditions(layer)) if self._cache else None
            with eval_mode(self.backbone), _network(self.backbone, layer) as network:
                self._features[layer] = self._both_splits(network, kept)
        return self._features[layer]

    def features_by(self, network: Callable[[Tensor], Tensor]) -> Features:
        """What any function of views makes of the same images: float views [B, 3, S, S] -> [B, width]."""
        return self._both_splits(network)

    def views(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> one plain view of each, resized and normalised: float [B, 3, S, S], channels_last."""
        views = images.float()
        if views.shape[-1] != self.image_size:
            views = F.interpolate(views, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return ((views / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def fresh(self, initial: bool = False) -> nn.Module:
        """A copy of the backbone to train, in training mode; with `initial` its random weights depend on the seed.

        Raises UserError where `initial` is asked for and nobody said how the backbone is made.
        """
        if not initial:
            return deepcopy(self.backbone).requires_grad_().train()
        if self._initial is None:
            raise UserError("how this backbone was built is not known here, so it cannot be trained from scratch")
        with own_random(self.seed):
            return self._initial().to(self.device).train()

    @cached_property
    def head(self) -> nn.Module | None:
        """The method's projection head, [N, width] -> [N, d], in eval mode; None where there is none at hand."""
        with own_random(self.seed):
            head = self._make_head() if self._make_head else None
        return None if head is None else head.to(self.device).eval()

    def begin(self, name: str) -> None:
        """From now on files and notes belong to the evaluator called `name`."""
        self._name, self.files, self.notes = name, [], []

    def attach(self, name: str, alt: str) -> Path | None:
        """Where to write the file `name` of this evaluation; None: nobody wants files, so draw nothing.

        alt: what the file shows, in words, for who cannot see it.
        """
        if self._folder is None:
            return None
        path = self._folder / "figures" / self._name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files.append({"path": path.relative_to(self._folder).as_posix(), "alt": alt})
        return path

    def note(self, text: str) -> None:
        """One sentence that belongs to the result: "cat taken for dog: 31 of 300"."""
        self.notes.append(text)

    def _both_splits(self, network: Callable[[Tensor], Tensor], kept: "FeatureCache | None" = None) -> Features:
        (train_x, train_y), (test_x, test_y) = (self.outputs(s, network, kept) for s in (self.train, self.test))
        named = max(len(self.train.classes), len(self.test.classes))
        classes = max(named, int(train_y.max()) + 1, int(test_y.max()) + 1)
        return Features(train_x, train_y, test_x, test_y, classes)

    def outputs(
        self, store: "Store", network: Callable[[Tensor], Tensor], kept: "FeatureCache | None" = None
    ) -> tuple[Tensor, Tensor]:
        """What a function of views [B, 3, S, S] makes of a store's labelled images, float32 [N, width], and their
        classes, int64 [N]; in the store's order.
        """
        known = _labelled(store)
        labels = torch.from_numpy(known.labels).long().to(self.device)
        x = kept.read(known, self.device) if kept else None
        if x is None:
            x = self._extract(known, network)
            if kept:
                kept.write(known, x)
        return x, labels

    @torch.no_grad()
    def _extract(self, store: "Store", network: Callable[[Tensor], Tensor]) -> Tensor:
        from sslkit.data import in_order

        x = torch.empty(0)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        for batch in in_order(store, batch_size=self.batch_size, device=self.device):
            with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
                out = network(self.views(batch.images))
            if not len(x):
                # Filled in place: a million features and a second copy of them need not fit together.
                x = torch.empty(len(store), out.shape[1], device=self.device)
            x[batch.indices] = out = out.float()
            # Of all at once it would take as much memory again as the features.
            finite &= out.isfinite().all()
        if not finite:
            raise UserError("the backbone's features are not finite: its weights are damaged, or training diverged")
        return x

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self.backbone)

    def _conditions(self, layer: str | None) -> list[Any]:
        """What else than weights and images decides the features."""
        scale = [self.mean.flatten().tolist(), self.std.flatten().tolist()]
        return [layer, self.image_size, *scale, str(self.autocast), self.device.type]


def _labelled(store: "Store") -> Any:
    rows = np.flatnonzero(store.labels >= 0) if store.labels is not None else np.empty(0, np.int64)
    if not len(rows):
        raise UserError("there are no labels to evaluate with; name labelled images with eval_data=")
    return store if len(rows) == len(store) else store.subset(rows)


@contextmanager
def _network(backbone: nn.Module, layer: str | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """What makes features [N, width] of images: the backbone, or one of its layers, pooled."""
    if layer is None:
        yield backbone
        return
    with tap(backbone, layer) as tapped:

        def network(images: Tensor) -> Tensor:
            backbone(images)
            if not hasattr(tapped, "raw"):
                raise UserError(f"the backbone's layer {layer!r} is never called; choose one of those in it")
            return tapped.raw if tapped.raw.ndim == 2 else _pooled(tapped.output)

        yield network


def _pooled(maps: Tensor) -> Tensor:
    """Maps [N, C, h, w] averaged over a grid, as fine as they are at most: [N, about 9000]."""
    side = min(max(1, round(sqrt(LAYER_WIDTH / maps.shape[1]))), maps.shape[2])
    return F.adaptive_avg_pool2d(maps.float(), side).flatten(1)
