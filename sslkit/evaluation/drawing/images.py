"""Helpers of evaluators that read images: rows, class names, thumbnails, features of changed images."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sslkit.errors import UserError
from sslkit.evaluation.subject import Subject
from sslkit.nn.modes import eval_mode

if TYPE_CHECKING:
    from sslkit.data import Store

Change = Callable[[Tensor, Tensor], Tensor]
"""(uint8 [b, 3, S, S], their positions in `rows`, int64 [b]), both on the device -> the changed images."""


def labelled_rows(store: "Store") -> NDArray[np.int64]:
    """Return the row numbers of the images whose features are extracted, in the order of the features."""
    return np.empty(0, np.int64) if store.labels is None else np.flatnonzero(store.labels >= 0)


def drawn(count: int, most: int, seed: int) -> NDArray[np.int64]:
    """Draw sorted rows of at most `most` of `count` images, regardless of their classes."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def class_names(subject: Subject, classes: int) -> list[str]:
    """Return one name per class; its number if the images have no class names."""
    candidates = [getattr(getattr(subject, split, None), "classes", ()) for split in ("train", "test")]
    names = list(max(candidates, key=len))
    return names + [str(number) for number in range(len(names), classes)]


def read(store: "Store", rows: NDArray[np.int64], device: torch.device, size: int) -> Tensor:
    """Read images as uint8 [n, 3, size, size] on the device, resized if they are stored at another size."""
    return resized(torch.from_numpy(store.read(rows)).permute(0, 3, 1, 2).to(device), size)


def resized(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [n, 3, S, S] to uint8 [n, 3, size, size], antialiased; unchanged if that is their size."""
    if images.shape[-1] == size:
        return images
    small = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def thumbnails(store: "Store", rows: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Read images as uint8 [n, size, size, 3]."""
    images = read(store, rows, torch.device("cpu"), size)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


@torch.no_grad()
def features_of_changed(subject: Subject, store: "Store", rows: NDArray[np.int64], change: Change) -> Tensor:
    """Features of these images after `change`, from the backbone in eval mode, float32 [n, width].

    Images are decoded by threads a few batches ahead; `change` is called here, one batch after the other.
    Raises UserError if features are not finite.
    """
    from sslkit.data import in_order

    batches = in_order(store.subset(rows), batch_size=subject.preprocessing.batch_size, device=subject.device)
    with eval_mode(subject.backbone):
        changed = (change(resized(batch.images, subject.image_size), batch.indices) for batch in batches)
        features = torch.cat([_features(subject, images) for images in changed])
    if not features.isfinite().all():
        raise UserError("the backbone's features are not finite: its weights are damaged, or training diverged")
    return features


def _features(subject: Any, images: Tensor) -> Tensor:
    dtype = subject.preprocessing.autocast
    with torch.autocast(subject.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        out: Tensor = subject.backbone(subject.views(images)).float()
        return out
