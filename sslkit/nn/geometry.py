"""Geometry of features: figures of quality that need no labels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.machine.load import computing_threads

PAIRS = 2**22
"""Similarities of pairs of features computed at once: 32 MiB of float64."""
SMALLEST = 1e-7
"""ε of RankMe's Eq. 1, for float32 features."""


@torch.no_grad()
def rankme(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, Eq. 1): the effective rank of features [N, D], between 1 and min(N, D).

    The exponential of the entropy of the singular values, divided by their sum. The mean is not subtracted.
    """
    singular = _singular_values(features)
    p = singular / singular.sum().clamp_min(SMALLEST) + SMALLEST
    return float(torch.special.entr(p).sum().exp())


@torch.no_grad()
def alpha_req(features: Tensor) -> float:
    """α-ReQ (Agrawal et al. 2022, section 3): how fast the eigenvalues of the covariance of features [N, D] decay.

    λ_j ∝ j^-α, by least squares on logarithms over the eigenvalues above rounding. Features close to α = 1 generalise
    best in the paper; larger α: the features vary in few directions. 0 where nothing varies.
    """
    eigenvalues = _singular_values(features - features.mean(0)) ** 2
    eigenvalues = eigenvalues[eigenvalues > 1e-10 * eigenvalues.max().clamp_min(1e-300)]
    if len(eigenvalues) < 2:
        return 0.0
    ranks = torch.arange(1, len(eigenvalues) + 1, dtype=eigenvalues.dtype).log()
    x, y = ranks - ranks.mean(), eigenvalues.log() - eigenvalues.log().mean()
    return float(-(x * y).sum() / (x * x).sum())


@torch.no_grad()
def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of two views' features [N, D], scaled to unit length (Wang and Isola 2020, 4.1, α = 2).

    0: both views of every image have the same features; 2: they are as far apart as unrelated directions.
    """
    return float((F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)).square().sum(1).mean())


@torch.no_grad()
def uniformity(features: Tensor) -> float:
    """Logarithm of the mean Gaussian potential of all pairs of features [N, D] (Wang and Isola 2020, 4.2, t = 2).

    Features are scaled to unit length. 0: all point in one direction; about -4 where they spread over the sphere.
    """
    unit = F.normalize(features.double(), dim=1)
    n, norms = len(unit), unit.square().sum(1)
    potentials = torch.zeros((), dtype=unit.dtype, device=unit.device)
    # Squared distances from products, because a product of matrices is much faster than distances one by one.
    for start in range(0, n, rows := max(1, PAIRS // n)):
        block = slice(start, start + rows)
        squared = norms[block, None] + norms - 2 * unit[block] @ unit.T
        potentials += squared.mul(-2).exp().sum()
    # Each image's potential with itself, 1, is no pair.
    return float(((potentials - n) / (n * (n - 1))).log())


@torch.no_grad()
def view_retrieval(first: Tensor, second: Tensor) -> float:
    """Share of images whose second view is nearest to their first, by cosine, among the second views of all.

    first, second: features [N, D] of two views of the same N images. Chance is 1/N.
    """
    similarity = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T
    found = similarity.argmax(1) == torch.arange(len(first), device=first.device)
    return float(found.double().mean())


def _singular_values(features: Tensor) -> Tensor:
    """In descending order, in float64 on the CPU, from the smaller of the two Gram matrices."""
    x = features.double().cpu()
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    # One thread loses little, while several wait for each other for seconds where another program shares the cores.
    with computing_threads(1, gram.device):
        singular: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)
    return singular
