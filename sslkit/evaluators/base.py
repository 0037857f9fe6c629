"""The contract of an evaluator, and the subject it judges: a backbone's features of labelled images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.backbones.layers import tap
from sslkit.config import Config
from sslkit.errors import UserError

if TYPE_CHECKING:
    from sslkit.data import Store

LAYER_WIDTH = 9000
"""About how many numbers of an earlier layer's map are kept (Goyal et al. 2019, section 4.2)."""
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """What is judged: a frozen backbone and labelled images, whose features are extracted once for all evaluators."""

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
    ) -> None:
        """`mean` and `std` are of images in 0..1; `precision` is fp32, bf16 or fp16 (autocast)."""
        self.backbone = backbone
        self.train, self.test = train, test
        self.image_size = image_size
        self.device = torch.device(device)
        self.mean, self.std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (mean, std))
        self.autocast = PRECISIONS[precision]
        self.seed = seed
        self.batch_size = batch_size
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
            self._features[layer] = self._both_splits(layer)
        return self._features[layer]

    def _both_splits(self, layer: str | None) -> Features:
        with _eval_mode(self.backbone), _network(self.backbone, layer) as network:
            (train_x, train_y), (test_x, test_y) = (self._extract(s, network) for s in (self.train, self.test))
        named = max(len(self.train.classes), len(self.test.classes))
        classes = max(named, int(train_y.max()) + 1, int(test_y.max()) + 1)
        return Features(train_x, train_y, test_x, test_y, classes)

    @torch.no_grad()
    def _extract(self, store: "Store", network: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        from sslkit.data import in_order

        known = _labelled(store)
        labels = torch.from_numpy(known.labels).long().to(self.device)
        x = torch.empty(0)
        for batch in in_order(known, batch_size=self.batch_size, device=self.device):
            out = self._forward(batch.images, network)
            if not len(x):
                # Filled in place: a million features and a second copy of them need not fit together.
                x = torch.empty(len(known), out.shape[1], device=self.device)
            x[batch.indices] = out.float()
        if not x.isfinite().all():
            raise UserError("the backbone's features are not finite: its weights are damaged, or training diverged")
        return x, labels

    def _forward(self, images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        views = images.float()
        if views.shape[-1] != self.image_size:
            views = F.interpolate(views, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        views = ((views / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
            return network(views)


class Evaluator:
    """Base of every evaluator."""

    class Config(Config):
        """What `evaluators.<name>.<field>=` accepts."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def protocol(self) -> str:
        """How the figures come about, in words, for evaluations.jsonl."""
        raise NotImplementedError(f"{type(self).__name__} states no protocol")

    def __call__(self, subject: Subject) -> dict[str, float]:
        """The figures by name: {"top1": fraction, "top5": fraction}, or whatever it measures."""
        raise NotImplementedError(f"{type(self).__name__} measures nothing")


def features_at(subject: Subject, layer: str | None) -> Features:
    """The subject's features, or those of an earlier layer: what an evaluator with a setting `layer` judges."""
    return subject.features if layer is None else subject.features_of(layer)


def accuracy(ranking: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """top1 and top5 as fractions, of predictions [M, up to 5] (class numbers, best first, -1 for none).

    With five classes or fewer the best five are all there are, and top5 is 1.
    """
    hits = ranking == labels[:, None]
    top5 = hits.any(1).double().mean().item() if classes > 5 else 1.0
    return {"top1": hits[:, 0].double().mean().item(), "top5": top5}


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


@contextmanager
def _eval_mode(net: nn.Module) -> Iterator[None]:
    """Training goes on afterwards as if nothing had been: every module gets its own mode back."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
