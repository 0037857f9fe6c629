"""Extract features of labelled images with a frozen network, without augmentation, optionally cached on disk."""

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
"""Approximate width of the pooled features of an earlier layer (Goyal et al. 2019, section 4.2)."""

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
    """int64 [M]; only for the final score, never for selecting anything."""
    classes: int
    """Number of classes."""


@dataclass(frozen=True)
class Preprocessing:
    """Conversion of images to the views of evaluation, and the device and precision of forward passes."""

    image_size: int
    """Height and width of a view, in pixels."""
    mean: Triple
    """Mean of the RGB channels of images in [0, 1], which is subtracted."""
    std: Triple
    """Standard deviation of the RGB channels of images in [0, 1], by which the views are divided."""
    device: torch.device
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast)."""
    batch_size: int = 256
    """Images per forward pass."""

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast dtype, or None for float32."""
        return PRECISIONS[self.precision]

    @cached_property
    def _channels(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return mean, std

    def views(self, images: Tensor) -> Tensor:
        """Resize and normalise images: uint8 [B, 3, H, W] -> float [B, 3, S, S], channels_last."""
        views = images.float()
        if views.shape[-1] != self.image_size:
            views = F.interpolate(views, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        mean, std = self._channels
        return ((views / 255 - mean) / std).contiguous(memory_format=torch.channels_last)

    def identity(self) -> list[Any]:
        """Return everything that determines the features besides weights and images, JSON-serialisable."""
        scale = [channel.flatten().tolist() for channel in self._channels]
        return [self.image_size, *scale, str(self.autocast), self.device.type]


def labelled_outputs(
    store: "Store", network: Network, preprocessing: Preprocessing, cache: FeatureCache | None = None
) -> tuple[Tensor, Tensor]:
    """Return the outputs of `network`, float32 [N, width], for the labelled images of a store, and their classes [N].

    Classes are int64; the order is the store's. Raises UserError if there are no labels, or if outputs are not finite.
    """
    labelled = _labelled(store)
    labels = torch.from_numpy(labelled.labels).long().to(preprocessing.device)
    return outputs(labelled, network, preprocessing, cache), labels


def outputs(
    store: "Store", network: Network, preprocessing: Preprocessing, cache: FeatureCache | None = None
) -> Tensor:
    """Return the outputs of `network`, float32 [N, width], for all images of a store, in its order.

    Raises UserError if outputs are not finite.
    """
    x = cache.read(store, preprocessing.device) if cache else None
    if x is None:
        x = _extract(store, network, preprocessing)
        if cache:
            cache.write(store, x)
    return x


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
            # Allocated once and filled in place, because concatenating batches would need twice the memory.
            x = torch.empty(len(store), out.shape[1], device=device)
        x[batch.indices] = out = out.float()
        # Checked per batch, because a check of all features would need as much memory again.
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
    """Yield a function from views to features [N, width]: the backbone, or one of its layers, pooled."""
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
    """Average feature maps [N, C, h, w] over a grid, no finer than the maps: [N, about 9000]."""
    side = min(max(1, round(sqrt(LAYER_WIDTH / maps.shape[1]))), maps.shape[2])
    return F.adaptive_avg_pool2d(maps.float(), side).flatten(1)
