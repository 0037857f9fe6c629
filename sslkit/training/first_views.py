"""A picture of the first views: images of the first batch, each with the views that the augmentation made of it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.machine import atomic

if TYPE_CHECKING:
    from sslkit.runs.run import Run
    from sslkit.training.setup import TrainingSetup

ROWS = 6
GAP = 2


def keep_first_views(run: "Run", setup: "TrainingSetup") -> None:
    """Write figures/views.png when the augmentation makes its next views, unless the file exists.

    A forward hook records the views of training itself, rather than drawing other ones.
    """
    file = run.path / "figures" / "views.png"
    if file.exists():
        return

    def write(_: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        hook.remove()
        with atomic.replacing(file) as temporary:
            Image.fromarray(sheet(inputs[0], output, setup.stores.mean, setup.stores.std)).save(temporary, "PNG")

    hook = setup.augmentation.register_forward_hook(write)


def sheet(images: Tensor, views: list[Tensor], mean: Any, std: Any) -> np.ndarray:
    """Return a contact sheet, uint8 [height, width, 3], with one row per image: the image, then its views.

    Smaller views are placed in the corner of their cell.
    images: uint8 [B, 3, H, W]. views: one normalised tensor [V*B, 3, h, w] per resolution, as augmentations return.
    """
    batch, side = len(images), max(images.shape[-1], *(v.shape[-1] for v in views))
    columns = [images, *(_visible(view, mean, std) for same in views for view in same.split(batch))]
    rows = min(ROWS, batch)
    page = np.full((rows * (side + GAP) - GAP, len(columns) * (side + GAP) - GAP, 3), 128, np.uint8)
    for j, column in enumerate(columns):
        for i, image in enumerate(column[:rows].permute(0, 2, 3, 1).cpu().numpy()):
            top, left = i * (side + GAP), j * (side + GAP)
            page[top : top + image.shape[0], left : left + image.shape[1]] = image
    return page


def _visible(views: Tensor, mean: Any, std: Any) -> Tensor:
    """Convert the shown rows of normalised float views back to uint8."""
    mean, std = (torch.tensor(v, device=views.device).view(1, 3, 1, 1) for v in (mean, std))
    out: Tensor = ((views[:ROWS].float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return out
