"""Losses as pure functions of embeddings; nothing here knows a network, a batch or a run."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6
"""Smallest norm to divide by, as in the official code of SimCLR and of BYOL (1e-12 on the squared norm)."""


def nt_xent(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, Eq. 1 and Algorithm 1).

    z0, z1: [N, D], two views of the same N images, in the same order; any scale, they are L2-normalised here.
    temperature: τ > 0; the paper's best is 0.1 on ImageNet (Table 5) and 0.5 on CIFAR-10 (B.9).
    Returns the mean over all 2N views of the cross entropy of finding the other view of the same image among
    the 2N-1 others: log(2N-1) where all embeddings are equal. Computed in float32 under autocast; float64
    stays.
    Raises ValueError where the shapes do not pair up.
    """
    return pair_cross_entropy(pair_logits(z0, z1, temperature))


def pair_logits(z0: Tensor, z1: Tensor, temperature: float = 0.5) -> Tensor:
    """sim(z_i, z_k)/τ for all pairs of 2N views, [2N, 2N]; -inf on the diagonal, for k ≠ i in Eq. 1."""
    _check_pair(z0, z1)
    with torch.autocast(z0.device.type, enabled=False):
        z = _normalize(torch.cat([z0, z1]))
        logits = (z / temperature) @ z.T
    return logits.fill_diagonal_(-torch.inf)


def pair_cross_entropy(logits: Tensor) -> Tensor:
    """Mean cross entropy of `pair_logits` against each view's partner, N rows away."""
    return F.cross_entropy(logits, _partners(logits))


@torch.no_grad()
def contrastive_health(logits: Tensor, rows: int = 256) -> dict[str, Tensor]:
    """How well views find their partners, from the first rows of `pair_logits` (SimCLR, Table 5).

    contrastive_accuracy: top-1 accuracy among the 2N-1 candidates, 0 to 1 (chance is 1/(2N-1)).
    contrastive_entropy: mean entropy of the softmax over them in nats, 0 to log(2N-1).
    """
    some, partners = logits[:rows], _partners(logits)[:rows]
    return {
        "contrastive_accuracy": (some.argmax(1) == partners).float().mean(),
        "contrastive_entropy": torch.special.entr(some.softmax(1)).sum(1).mean(),
    }


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's regression loss (Grill et al. 2020, Eq. 2), for one direction.

    prediction: [N, D], the online network's; target: [N, D], the target network's; no gradient flows into it.
    Returns the mean over rows of ‖p/‖p‖ - t/‖t‖‖² = 2 - 2·cos(p, t), between 0 and 4. Computed in float32
    under autocast; float64 stays. Raises ValueError where the shapes differ.
    """
    _check_pair(prediction, target)
    with torch.autocast(prediction.device.type, enabled=False):
        difference = _normalize(prediction) - _normalize(target.detach())
        return difference.square().sum(1).mean()


def _normalize(z: Tensor) -> Tensor:
    return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1, eps=EPSILON)


def _partners(logits: Tensor) -> Tensor:
    views = len(logits)
    return torch.arange(views, device=logits.device).roll(views // 2)


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two tensors of one shape [N, D], got {list(a.shape)} and {list(b.shape)}")
