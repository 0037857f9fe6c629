"""The losses of SimSiam and NNCLR as pure functions of embeddings."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.nn.losses import byol, full_precision

# --- SimSiam ---


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """SimSiam's D(p, stopgrad(z)) (Chen and He 2021, arXiv:2011.10566, Eqs. 1 and 3), for one direction.

    p: [N, D], predictions of one view; z: [N, D], projections of the other; no gradient flows into z.
    Returns the negative mean cosine similarity, -1 where all pairs align: BYOL's loss up to scale and shift. Computed
    in float32 under autocast; float64 stays. Raises ValueError if the shapes differ.
    """
    return byol(p, z) / 2 - 1


# --- NNCLR ---


def nnclr(neighbours: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """Loss L of NNCLR (Dwibedi et al. 2021, arXiv:2104.14548, 3.2 and Algorithm 1), for one direction.

    neighbours: [N, D], the nearest neighbours of one view's embeddings, see `nearest`; no gradient flows into
    them. p: [N, D], predictions of the other view of the same images, in the same order. Both of any scale.
    temperature: τ > 0.
    Returns the mean over images of the cross entropy of identifying, given the neighbour, the image's prediction
    among those of the batch: log(N) where all are equal. Computed in float32 under autocast; float64 stays.
    Raises ValueError if the shapes differ.
    """
    return neighbour_cross_entropy(neighbour_logits(neighbours, p, temperature))


def neighbour_logits(neighbours: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """cos(neighbour i, p_k)/τ for all pairs of images, [N, N]; see `nnclr`."""
    if p.ndim != 2 or p.shape != neighbours.shape:
        raise ValueError(f"expected two tensors of one shape [N, D], got {list(neighbours.shape)} and {list(p.shape)}")
    with torch.autocast(p.device.type, enabled=False):
        return (_unit(neighbours.detach()) / temperature) @ _unit(p).T


def neighbour_cross_entropy(logits: Tensor) -> Tensor:
    """Mean cross entropy of `neighbour_logits` with the diagonal as the target."""
    return F.cross_entropy(logits, own(logits))


def own(logits: Tensor) -> Tensor:
    """Return the column of each row's own image, int64 [N]."""
    return torch.arange(len(logits), device=logits.device)


@torch.no_grad()
def nearest(z: Tensor, support: Tensor) -> Tensor:
    """Return the row of `support` [K, D], of unit length, most similar by cosine to each z [N, D]: int64 [N].

    With rows of unit length it is also the nearest by Euclidean distance from z/‖z‖, the paper's NN(z, Q).
    """
    with torch.autocast(z.device.type, enabled=False):
        return (z.to(support.dtype) @ support.T).argmax(1)


def _unit(z: Tensor) -> Tensor:
    return F.normalize(full_precision(z), dim=1)
