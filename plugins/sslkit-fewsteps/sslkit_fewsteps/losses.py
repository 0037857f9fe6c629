"""The losses of EMP-SSL, LeJEPA and decoupled contrastive learning, as pure functions of embeddings.

Those of EMP-SSL and LeJEPA are split into terms and their sum, because the terms are worth logging.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.nn.losses import EPSILON, full_precision, pair_loss

KNOTS = 17
"""Values of t at which the integral of the Epps-Pulley statistic is evaluated (LeJEPA, Section 5.1)."""
LARGEST_T = 3.0
"""End of that integral: 3 in the official code; the paper recommends 5, and finds no difference (Table 1a)."""
GAUSSIAN_STATISTIC = 1.0525
"""Mean of that statistic for samples of a standard Gaussian: the integral of w(t)·(1 - φ(t)²), by the same rule."""


# --- EMP-SSL ---


def empssl(z: Tensor, invariance_weight: float = 200.0, eps: float = 0.2) -> Tensor:
    """Loss of EMP-SSL (Tong et al. 2023, arXiv:2304.03977), the training objective of the paper, negated.

    z: [N, V, D], V ≥ 1 patches of each of N images, of any scale.
    invariance_weight: λ ≥ 0; the paper's 200 belongs to N = 100, because R grows with N, up to D.
    eps: see `total_coding_rate`.
    Returns -(R + λ·similarity) with the terms of `empssl_terms`. Computed in float32 under autocast; float64 stays.
    Raises ValueError unless z has three dimensions.
    """
    return empssl_sum(empssl_terms(z, eps), invariance_weight)


def empssl_terms(z: Tensor, eps: float = 0.2) -> dict[str, Tensor]:
    """The two terms of EMP-SSL, scalars to be maximised.

    coding_rate: `total_coding_rate` of the L2-normalised embeddings Z_v of each patch v, averaged over patches.
    similarity: mean cosine of each patch's embedding with the mean Z̄ over patches, -1 to 1. Gradients flow
    into Z̄, as in the official code.
    """
    if z.ndim != 3:
        raise ValueError(f"expected embeddings [N, V, D], got {list(z.shape)}")
    with torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(full_precision(z), dim=2, eps=EPSILON)
        mean = F.normalize(unit.mean(1, keepdim=True), dim=2, eps=EPSILON)
        return {
            "coding_rate": total_coding_rate(unit.transpose(0, 1), eps).mean(),
            "similarity": (unit * mean).sum(2).mean(),
        }


def empssl_sum(terms: dict[str, Tensor], invariance_weight: float) -> Tensor:
    """`empssl` in terms of the results of `empssl_terms`."""
    return -(terms["coding_rate"] + invariance_weight * terms["similarity"])


def total_coding_rate(z: Tensor, eps: float = 0.2) -> Tensor:
    """Total coding rate R(Z) = ½ log det(I + D/(N·ε²) ZᵀZ) of embeddings [..., N, D], in nats, [...].

    eps: the paper's ε² > 0, which the official code calls eps; 0.2 in both.
    Returns a value between 0 and, for rows of unit length, `largest_coding_rate`: ½ log(1 + D/ε²) where all are equal.
    """
    n, dim = z.shape[-2:]
    with torch.autocast(z.device.type, enabled=False):
        z = full_precision(z)
        # ZᵀZ and ZZᵀ give the same determinant (Sylvester); the smaller one is cheaper.
        gram = z @ z.mT if n < dim else z.mT @ z
        identity = torch.eye(gram.shape[-1], dtype=z.dtype, device=z.device)
        # Positive definite by construction, so there is no error to check for, which would synchronise with the device.
        factor = torch.linalg.cholesky_ex(identity + dim / (n * eps) * gram).L
        out: Tensor = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return out


def largest_coding_rate(n: int, dim: int, eps: float = 0.2) -> float:
    """Return the largest `total_coding_rate` of n rows of unit length: that of rows that spread evenly."""
    rank = min(n, dim)
    return rank / 2 * math.log1p(dim / (rank * eps))


# --- LeJEPA ---


def lejepa(global_z: Tensor, local_z: Tensor | None, directions: Tensor, sigreg_weight: float = 0.05) -> Tensor:
    """Loss of LeJEPA (Balestriero and LeCun 2025, arXiv:2511.08544, Section 5.1 and Algorithm 2).

    global_z: [N, V, K], V ≥ 1 full-size views of each of N images.
    local_z: [N, L, K], L small views of the same images; None: no small views.
    directions: [K, M], see `sigreg`.
    sigreg_weight: λ, 0 to 1; the paper recommends 0.05.
    Returns (1-λ)·prediction + λ·sigreg of `lejepa_terms`. Computed in float32 under autocast; float64 stays.
    """
    return lejepa_sum(lejepa_terms(global_z, local_z, directions), sigreg_weight)


def lejepa_terms(global_z: Tensor, local_z: Tensor | None, directions: Tensor) -> dict[str, Tensor]:
    """The two terms of LeJEPA, scalars ≥ 0.

    prediction: mean square of the difference between each view's embedding and the mean of the full-size views
    of its image (Eq. 8). Averaged over dimensions as in Algorithm 2, where Eq. 8 sums. No gradient is stopped.
    sigreg: `sigreg` of the embeddings of each view, averaged over views (Eq. 9).
    """
    if global_z.ndim != 3:
        raise ValueError(f"expected embeddings [N, V, K], got {list(global_z.shape)}")
    with torch.autocast(global_z.device.type, enabled=False):
        centre = full_precision(global_z).mean(1, keepdim=True)
        z = full_precision(global_z if local_z is None else torch.cat([global_z, local_z], dim=1))
        return {
            "prediction": (centre - z).square().mean(),
            "sigreg": sigreg(z.transpose(0, 1), directions).mean(),
        }


def lejepa_sum(terms: dict[str, Tensor], sigreg_weight: float) -> Tensor:
    """`lejepa` in terms of the results of `lejepa_terms`."""
    return (1 - sigreg_weight) * terms["prediction"] + sigreg_weight * terms["sigreg"]


def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """Sketched isotropic Gaussian regularisation of embeddings [..., N, K]: [...], ≥ 0 (Section 4.2, Algorithm 1).

    directions: [K, M], M columns of unit length, `random_directions` anew in every step.
    Returns the mean over directions of `epps_pulley` of the embeddings projected on them.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = full_precision(z)
        return epps_pulley(z @ directions.to(z.dtype)).mean(-1)


def epps_pulley(x: Tensor) -> Tensor:
    """Epps-Pulley statistic of samples [..., N, M] of M variables: how far each is from a standard Gaussian, [..., M].

    N ∫ |φ̂(t) - φ(t)|² w(t) dt (Section 4.2.3), with the empirical characteristic function φ̂(t) = 1/N Σ_n exp(i·t·x_n),
    that of the standard Gaussian φ(t) = exp(-t²/2), and w = φ. By the trapezoid rule over KNOTS values of t from 0 to
    LARGEST_T, doubled because the integrand is even, as in the official code.
    Returns values ≥ 0, on average GAUSSIAN_STATISTIC for a standard Gaussian, whatever N is; proportional to N for
    any other distribution.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = full_precision(x)
        t = torch.linspace(0, LARGEST_T, KNOTS, dtype=x.dtype, device=x.device)
        phi = torch.exp(-t.square() / 2)
        angles = x.unsqueeze(-1) * t
        error = (angles.cos().mean(-3) - phi).square() + angles.sin().mean(-3).square()
        return x.shape[-2] * 2 * torch.trapezoid(error * phi, dx=LARGEST_T / (KNOTS - 1))


def random_directions(dim: int, count: int, device: torch.device) -> Tensor:
    """Draw directions that are uniform on the sphere, [dim, count] in float32, from torch's global generator."""
    return F.normalize(torch.randn(dim, count, device=device), dim=0)


# --- decoupled contrastive learning ---


def dcl(z0: Tensor, z1: Tensor, temperature: float = 0.2) -> Tensor:
    """Decoupled contrastive loss (Yeh et al. 2022, arXiv:2110.06848, L_DC): NT-Xent without the positive below.

    z0, z1: [N, D], two views of the same N > 1 images, in the same order, of any scale.
    temperature: τ > 0.
    Returns the mean over all 2N views of -s⁺/τ + log Σ exp(s⁻/τ), for cosines s⁺ with the other view of the image
    and s⁻ with the 2N-2 views of other images: log(2N-2) where all embeddings are equal; may be negative. The paper
    sums over views. Computed in float32 under autocast; float64 stays.
    Raises ValueError if the shapes do not pair up or there is only one image.
    """
    _check_pair(z0, z1)
    return _decoupled(z0, z1, temperature, None)


def dclw(z0: Tensor, z1: Tensor, temperature: float = 0.5, sigma: float = 0.5) -> Tensor:
    """Weighted decoupled contrastive loss (Yeh et al. 2022, L_DCW): `dcl` with s⁺ times `positive_weights`.

    sigma: σ > 0; the paper's is 0.5.
    Everything else is as in `dcl`, and equal to it where all images' views are equally similar.
    """
    _check_pair(z0, z1)
    return _decoupled(z0, z1, temperature, positive_weights(z0, z1, sigma))


@torch.no_grad()
def positive_weights(z0: Tensor, z1: Tensor, sigma: float = 0.5) -> Tensor:
    """Weight of each image's positive pair, 2 - exp(s⁺/σ) / mean over images of exp(s⁺/σ): [N], a constant.

    The negative von Mises-Fisher weighting of Yeh et al. 2022: images whose views differ much get weights above 1.
    The mean over images is 1; a weight lies below 2, and may be negative.
    """
    with torch.autocast(z0.device.type, enabled=False):
        similarity = torch.cosine_similarity(full_precision(z0), full_precision(z1), dim=1, eps=EPSILON)
        return 2 - len(z0) * (similarity / sigma).softmax(0)


def _decoupled(z0: Tensor, z1: Tensor, temperature: float, weights: Tensor | None) -> Tensor:
    of_views = None if weights is None else weights.repeat(2)

    def loss(logits: Tensor, partners: Tensor) -> Tensor:
        positive = logits.gather(1, partners[:, None])[:, 0]
        negatives = logits.scatter(1, partners[:, None], -torch.inf)
        # An image's two views have the same weight, so a partner's is also the row's own.
        weighted = positive if of_views is None else of_views[partners] * positive
        return (negatives.logsumexp(1) - weighted).mean()

    return pair_loss(loss, z0, z1, temperature)


def _check_pair(z0: Tensor, z1: Tensor) -> None:
    # A single image has no negatives.
    if z0.ndim != 2 or z0.shape != z1.shape or len(z0) < 2:
        raise ValueError(
            f"expected two tensors of one shape [N, D] with N > 1, got {list(z0.shape)} and {list(z1.shape)}"
        )
