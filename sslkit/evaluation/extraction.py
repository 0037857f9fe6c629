"""Extract features: one plain view of every labelled image through a frozen network, once, kept on disk if asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.backbones.layers import tap
from sslkit.data.images import Triple
from sslkit.errors import UserError
from sslkit.evaluation.cache import FeatureCache
from sslkit.machine.precision import PRECISIONS

if TYPE_CHECKING:
    from sslkit.data import Store

LAYER_WIDTH = 9000
"""About how many numbers of an earlier layer's map are kept (Goyal et al. 2019, section 4.2)."""

Network = Callable[[Tensor], Tensor]
"""Float views [B, 3, S, S] -> features [B, width]."""


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


@dataclass(frozen=True)
class Preprocessing:
    """How images become the views that a network sees in evaluation, and where it computes."""

    image_size: int
    """Height and width of a view, in pixels."""
    mean: Triple
    """Mean of red, green and blue of images in 0..1, subtracted from the views."""
    std: Triple
    """Standard deviation of the same, by which the views are divided."""
    device: torch.device
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast)."""
    batch_size: int = 256
    """Images a forward pass."""

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast type, or None for plain float32."""
        return PRECISIONS[self.precision]

    @cached_property
    def _channels(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return mean, std

    def views(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> one plain view of each, resized and normalised: float [B, 3, S, S], channels_last."""
        views = images.float()
        if views.shape[-1] != self.image_size:
            views = F.interpolate(views, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        mean, std = self._channels
        return ((views / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def identity(self) -> list[Any]:
        """All that decides the features besides weights and images, as JSON-able values."""
        scale = [channel.flatten().tolist() for channel in self._channels]
        return [self.image_size, *scale, str(self.autocast), self.device.type]


def labelled_outputs(
    store: "Store", network: Network, preprocessing: Preprocessing, cache: FeatureCache | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs of `network` for the labelled images of a store, float32 [N, width], and their classes, int64 [N].

    In the store's order. Raises UserError if there are no labels, or if outputs are not finite.
    """
    labelled = _labelled(store)
    labels = torch.from_numpy(labelled.labels).long().to(preprocessing.device)
    x = cache.read(labelled, preprocessing.device) if cache else None
    if x is None:
        x = _extract(labelled, network, preprocessing)
        if cache:
            cache.write(labelled, x)
    return x, labels


@torch.no_grad()
def _extract(store: "Store", network: Network, preprocessing: Preprocessing) -> Tensor:
    from sslkit.data import in_order

    device, autocast = preprocessing.device, preprocessing.autocast
    x = torch.empty(0)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for batch in in_order(store, batch_size=preprocessing.batch_size, device=device):
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            out = network(preprocessing.views(batch.images))
        if not len(x):
            # Filled in place: a million features and a second copy of them need not fit together.
            x = torch.empty(len(store), out.shape[1], device=device)
        x[batch.indices] = out = out.float()
        # Of all at once it would take as much memory again as the features.
        finite &= out.isfinite().all()
    if not finite:
        raise UserError("the backbone's features are not finite: its weights are damaged, or training diverged")
    return x


def _labelled(store: "Store") -> Any:
    rows = np.flatnonzero(store.labels >= 0) if store.labels is not None else np.empty(0, np.int64)
    if not len(rows):
        raise UserError("there are no labels to evaluate with; name labelled images with eval_data=")
    return store if len(rows) == len(store) else store.subset(rows)


@contextmanager
def feature_network(backbone: nn.Module, layer: str | None) -> Iterator[Network]:
    """The network that makes features [N, width] of views: the backbone, or one of its layers, pooled."""
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
