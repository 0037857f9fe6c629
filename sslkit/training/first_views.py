"""The sheet of views: each image of the first batch, and what the view recipe made of it."""

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
    """Write figures/views.png when the recipe makes its next views, unless it is there already.

    It shows what training itself gets, because it listens rather than draws views of its own.
    """
    file = run.path / "figures" / "views.png"
    if file.exists():
        return

    def write(_: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        listening.remove()
        with atomic.replacing(file) as temporary:
            Image.fromarray(sheet(inputs[0], output, setup.stores.mean, setup.stores.std)).save(temporary, "PNG")

    listening = setup.augmentation.register_forward_hook(write)


def sheet(images: Tensor, views: list[Tensor], mean: Any, std: Any) -> np.ndarray:
    """A row an image: itself, then its views, smaller crops in the corner of their cell; uint8 [height, width, 3].

    images: uint8 [B, 3, H, W]. views: one normalised tensor [V*B, 3, h, w] a resolution, as a recipe gives them.
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
    """Normalised floats back to uint8, of the rows that are shown."""
    mean, std = (torch.tensor(v, device=views.device).view(1, 3, 1, 1) for v in (mean, std))
    out: Tensor = ((views[:ROWS].float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return out
