"""CIE Lab colours, on the device of the images, and the bins that turn their prediction into classification."""

import torch
from torch import Tensor

from sslkit.nn.losses import full_precision

TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""Rows X, Y, Z of linear sRGB (ITU-R BT.709 primaries)."""
WHITE = (0.95047, 1.0, 1.08883)
"""X, Y, Z of the illuminant D65, for the 2° observer."""

AB_STEP, AB_LIMIT = 10, 110
"""Distance between the centres of ab bins, and the outermost centre (Zhang et al. 2016)."""
L_STEP, L_BINS = 2, 50
"""Size of the bins of L, and their number; they cover 0 to 100."""


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB colours to CIE Lab, [..., 3, H, W] -> [..., 3, H, W].

    rgb: in 0..1; values outside are clipped. Returns L in 0..100, a in -86.2..98.3 and b in -107.9..94.5.
    Equal to scikit-image's `rgb2lab`. Computed in float32 under autocast; float64 stays.
    """
    rgb = full_precision(rgb).clamp(0, 1)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    # Products with Python numbers: a matrix product would round to TF32, and a tensor of them be a copy to the device.
    r, g, b = linear.unbind(-3)
    xyz = [(cr * r + cg * g + cb * b) / white for (cr, cg, cb), white in zip(TO_XYZ, WHITE)]
    x, y, z = map(_cube_root, xyz)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def _cube_root(t: Tensor) -> Tensor:
    """Cube root of CIE Lab, whose slope stays finite at black."""
    return torch.where(t > 0.008856, t.clamp(min=0.008856) ** (1 / 3), 7.787 * t + 16 / 116)


def ab_bins() -> Tensor:
    """Return the centres of the 313 bins of ab, float32 [313, 2], ordered by a, then b.

    They are the grid points in the convex hull of the ab of all sRGB colours, and their eight neighbours: the list that
    Zhang et al. 2016 (Colorful Image Colorization, arXiv:1603.08511, section 2.1) publish as `pts_in_hull`.
    A bin contains what rounds to its centre; every mixture of colours rounds to one of them.
    """
    grid = _ab_grid()
    side = len(range(-AB_LIMIT, AB_LIMIT + 1, AB_STEP))
    inside = _in_hull(grid, _all_ab()).float().view(1, 1, side, side)
    near = torch.nn.functional.max_pool2d(inside, 3, stride=1, padding=1)
    return grid[near.flatten() > 0]


def _ab_grid() -> Tensor:
    axis = torch.arange(-AB_LIMIT, AB_LIMIT + 1, AB_STEP, dtype=torch.float32)
    return torch.cartesian_prod(axis, axis)


def _all_ab(steps: int = 18) -> Tensor:
    """ab of a lattice of all sRGB colours, [steps³, 2]; the extremes are its corners and edges."""
    axis = torch.linspace(0, 1, steps)
    return rgb_to_lab(torch.cartesian_prod(axis, axis, axis).T[:, None])[1:, 0].T


def _in_hull(points: Tensor, cloud: Tensor, directions: int = 720) -> Tensor:
    """True for each of the points, [N, 2], that lies within the outermost points of the cloud in every direction."""
    angles = torch.arange(directions) * (2 * torch.pi / directions)
    outward = torch.stack([angles.cos(), angles.sin()])
    return (points @ outward <= (cloud @ outward).amax(0)).all(1)


def ab_table(bins: Tensor) -> Tensor:
    """Return bin numbers for `ab_bin`: int64 [23, 23], one per grid point, the nearest bin's if it is no bin itself."""
    side = len(range(-AB_LIMIT, AB_LIMIT + 1, AB_STEP))
    return torch.cdist(_ab_grid(), bins).argmin(1).view(side, side)


def ab_bin(ab: Tensor, table: Tensor) -> Tensor:
    """Return the bin number of every colour, [..., 2, H, W] -> int64 [..., H, W]; table: `ab_table`, on ab's device."""
    rows, columns = ((ab.clamp(-AB_LIMIT, AB_LIMIT) + AB_LIMIT) / AB_STEP).round().long().unbind(-3)
    return table[rows, columns]


def lightness_bin(lightness: Tensor) -> Tensor:
    """Return the bin number of L in 0..100, any shape -> int64, 0 to 49: bin i is [2i, 2i + 2), the last with 100."""
    return (lightness / L_STEP).long().clamp(0, L_BINS - 1)
