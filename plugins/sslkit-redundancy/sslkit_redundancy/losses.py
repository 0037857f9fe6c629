"""The losses of Barlow Twins and VICReg as pure functions of two views' embeddings.

Each is split into statistics of the batch and a loss of those, because the statistics are worth logging.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.nn.losses import full_precision

NORM_EPSILON = 1e-5
"""Added to the variance by the batch norm of Barlow Twins' official code."""


# --- Barlow Twins ---


def barlow_twins(z0: Tensor, z1: Tensor, redundancy_weight: float = 0.005) -> Tensor:
    """Loss of Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230, Eq. 1 and Algorithm 1).

    z0, z1: [N, D], two views of the same N > 1 images, in the same order; each dimension of any scale and shift.
    redundancy_weight: λ ≥ 0.
    Returns Σ_i (1 - c_ii)² + λ Σ_i Σ_j≠i c_ij², with c of `cross_correlation`: 0 where the views agree and
    the dimensions are uncorrelated. Computed in float32 under autocast; float64 stays.
    Raises ValueError if the shapes do not pair up or there is only one image.
    """
    return redundancy_reduction(*cross_correlation(z0, z1), redundancy_weight)


def cross_correlation(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation c over the batch of each dimension of z0 with each of z1 (Eq. 2): c_ii, [D], and Σ_i Σ_j≠i c_ij²."""
    _check_pair(z0, z1)
    with torch.autocast(z0.device.type, enabled=False):
        a, b = (F.batch_norm(full_precision(z), None, None, training=True, eps=NORM_EPSILON) for z in (z0, z1))
        return (a * b).mean(0), _off_diagonal(a, b) / len(a) ** 2


def redundancy_reduction(diagonal: Tensor, off_diagonal: Tensor, redundancy_weight: float) -> Tensor:
    """`barlow_twins` in terms of the results of `cross_correlation`."""
    return (1 - diagonal).square().sum() + redundancy_weight * off_diagonal


# --- VICReg ---


def vicreg(
    z0: Tensor,
    z1: Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """Loss of VICReg (Bardes et al. 2022, arXiv:2105.04906, Eq. 6), scaled as in the official code.

    z0, z1: [N, D], two views of the same N > 1 images, in the same order.
    invariance_weight, variance_weight, covariance_weight: λ, μ, ν ≥ 0.
    gamma, eps: see `vicreg_terms`.
    Returns the weighted sum of `vicreg_terms`. Computed in float32 under autocast; float64 stays.
    Raises ValueError if the shapes do not pair up or there is only one image.
    """
    return vicreg_sum(vicreg_terms(z0, z1, gamma, eps), invariance_weight, variance_weight, covariance_weight)


def vicreg_terms(z0: Tensor, z1: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> dict[str, Tensor]:
    """The three terms of VICReg's loss, scalars ≥ 0.

    invariance: mean square of z0 - z1. The official code averages over dimensions where Eq. 5 sums.
    variance: hinge loss of each dimension's standard deviation √(Var + eps) below gamma, averaged over dimensions
    (Eqs. 1 and 2) and over the two views, which Eq. 6 sums: gamma - √eps where all embeddings are equal.
    covariance: sum of the squared covariances of different dimensions, divided by D (Eqs. 3 and 4), of both views.
    """
    _check_pair(z0, z1)
    with torch.autocast(z0.device.type, enabled=False):
        z0, z1 = full_precision(z0), full_precision(z1)
        return {
            "invariance": F.mse_loss(z0, z1),
            "variance": (_variance(z0, gamma, eps) + _variance(z1, gamma, eps)) / 2,
            "covariance": _covariance(z0) + _covariance(z1),
        }


def vicreg_sum(
    terms: dict[str, Tensor], invariance_weight: float, variance_weight: float, covariance_weight: float
) -> Tensor:
    """`vicreg` in terms of the results of `vicreg_terms`."""
    return (
        invariance_weight * terms["invariance"]
        + variance_weight * terms["variance"]
        + covariance_weight * terms["covariance"]
    )


def _variance(z: Tensor, gamma: float, eps: float) -> Tensor:
    return (gamma - (z.var(0) + eps).sqrt()).relu().mean()


def _covariance(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return _off_diagonal(centred, centred) / (len(z) - 1) ** 2 / z.shape[1]


# --- common ---


def _off_diagonal(a: Tensor, b: Tensor) -> Tensor:
    """Σ_i Σ_j≠i of the squared elements of aᵀb, for a, b: [N, D]."""
    n, dim = a.shape
    if n < dim:
        # ‖aᵀb‖² = Σ aaᵀ∘bbᵀ: with thousands of dimensions this needs no [D, D] matrix, only [N, N] ones.
        return ((a @ a.T) * (b @ b.T)).sum() - (a * b).sum(0).square().sum()
    # Without its last element, the flattened matrix in rows of D + 1 has the diagonal in its first column.
    return (a.T @ b).flatten()[:-1].view(dim - 1, dim + 1)[:, 1:].square().sum()


def _check_pair(z0: Tensor, z1: Tensor) -> None:
    if z0.ndim != 2 or z0.shape != z1.shape or len(z0) < 2:
        raise ValueError(
            f"expected two tensors of one shape [N, D] with N > 1, got {list(z0.shape)} and {list(z1.shape)}"
        )
