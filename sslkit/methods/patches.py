"""Images cut into a 3×3 grid of tiles, for the methods that shuffle them (jigsaw, PIRL)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.augment.draws import Draws
from sslkit.backbones.stems import dry_run
from sslkit.errors import UserError

GRID = 3
"""Number of tiles along each side of the image."""
PAPER_IMAGE, PAPER_TILE, PAPER_GAP = 225, 64, 11
"""Pixels in Noroozi and Favaro 2016 (section 4): tiles of 64 cut from cells of 75."""


def tile_size(image_size: int) -> int:
    """Return the tile's height and width in pixels: the paper's ratio to the image, rounded up to a multiple of 8.

    16 at 32 px, 32 at 96 px, 64 at 224 px. Strides and patches divide such a tile without a remainder.
    """
    return 8 * -(-round(image_size * PAPER_TILE / PAPER_IMAGE) // 8)


def gap_size(image_size: int) -> int:
    """Return the mean gap between tiles in pixels, the paper's ratio to the image: 2 at 32 px, 5 at 96, 11 at 224."""
    return max(1, round(image_size * PAPER_GAP / PAPER_IMAGE))


def check_tiles(backbone: nn.Module, tile: int) -> None:
    """Raise UserError if the backbone does not accept images of a tile's size, in pixels."""
    try:
        dry_run(backbone, tile)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        problem = f"the backbone cannot take tiles of {tile} px ({reason})"
        raise UserError(f"{problem}; use another tile size or backbone") from error


def tiles(images: Tensor, tile: int, gap: int, generator: torch.Generator | None = None) -> Tensor:
    """Cut one tile out of every cell of the 3×3 grid, row by row: [N, 3, H, W] -> [N, 9, 3, tile, tile].

    tile: its height and width in pixels; the cut is resized to it (bilinear, antialiased).
    gap: by how many pixels the cut is smaller than its cell. Its position in the cell is uniform,
    so neighbours are 0 to 2·gap pixels apart, `gap` on average, and edges do not reveal the order.
    generator: source of the positions, on any device; None: torch's global one.
    Raises UserError if the gap leaves nothing of a cell.
    """
    cell_h, cell_w = (side // GRID for side in images.shape[2:])
    height, width = cell_h - gap, cell_w - gap
    if min(height, width) < 1:
        raise UserError(f"a gap of {gap} px leaves nothing of cells of {cell_h}×{cell_w} px; take a smaller gap")
    count = len(images)
    draws = Draws(1, count * GRID * GRID, images.device, generator)
    jitter = draws.table(2).mul_(gap + 1).long().clamp_(max=gap).view(count, GRID, GRID, 2)
    rows = _places(images.shape[2], height, jitter[..., 0].transpose(1, 2)).transpose(1, 2)
    columns = _places(images.shape[3], width, jitter[..., 1])
    image = torch.arange(count, device=images.device).view(-1, 1, 1, 1, 1)
    # Indexing leaves the channels last in memory, the layout that is fastest for convolutions.
    cut = images.permute(0, 2, 3, 1)[image, rows[..., :, None], columns[..., None, :]].flatten(0, 2).movedim(-1, 1)
    if (height, width) != (tile, tile):
        cut = F.interpolate(cut, (tile, tile), mode="bilinear", antialias=True)
    out: Tensor = cut.unflatten(0, (count, GRID * GRID))
    return out


def _places(side: int, length: int, jitter: Tensor) -> Tensor:
    """Pixel numbers of each cut along one side, whose cells are the last dimension of `jitter`: [..., 3, length]."""
    device = jitter.device
    cells = torch.arange(GRID, device=device) * side // GRID
    return (cells + jitter)[..., None] + torch.arange(length, device=device)
