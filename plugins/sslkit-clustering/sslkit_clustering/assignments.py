"""Components shared by SwAV and DINO: trainable prototypes and the loss across crops."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.nn.losses import full_precision


class Prototypes(nn.Linear):
    """Cosine similarity of embeddings to K trainable prototypes: [..., dim] -> [..., K], float32 even under autocast.

    The prototypes are normalised in the forward pass, not after each step, so that nothing but the optimizer changes
    a weight: this is DINO's weight normalisation with g = 1 and SwAV's normalised C.
    """

    def __init__(self, dim: int, number: int) -> None:
        super().__init__(dim, number, bias=False)

    def forward(self, z: Tensor, frozen: Tensor | None = None) -> Tensor:
        """Score embeddings z [..., dim] against the prototypes.

        frozen: bool scalar; where it is true the prototypes get a gradient of zero.
        """
        weight = self.weight if frozen is None else torch.where(frozen, self.weight.detach(), self.weight)
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(F.normalize(full_precision(z), dim=-1), F.normalize(weight, dim=-1))


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, absent: Tensor | None = None) -> Tensor:
    """Soft codes that use all prototypes equally, by the Sinkhorn-Knopp algorithm (Caron et al. 2020, Eq. 3 to 5).

    scores: [N, K], cosine similarities of N embeddings to K prototypes.
    epsilon: ε > 0 of Eq. 3; larger values give softer codes. iterations: at least 1.
    absent: bool [N], rows to ignore, such as the unfilled rows of a queue.
    Returns codes [N, K], whose rows sum to 1 and whose columns (over the rows that count), as iterations grow, sum to
    the number of rows over K. Computed in logarithms, so that no ε overflows; in float32 under autocast, float64 stays.
    """
    with torch.autocast(scores.device.type, enabled=False):
        log_q = full_precision(scores) / epsilon
        for _ in range(iterations):
            counted = log_q if absent is None else log_q.masked_fill(absent[:, None], -torch.inf)
            log_q = log_q - counted.logsumexp(0)
            log_q = log_q - log_q.logsumexp(1, keepdim=True)
        return log_q.exp()


def swapped_cross_entropy(targets: Tensor, scores: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross entropy between each crop's prediction and the targets of every other crop of its image.

    Eq. 2 of SwAV (Caron et al. 2020) and Eq. 3 of DINO (Caron et al. 2021), as means over images and pairs.
    targets: [N, C, K], distributions of the first C crops; no gradient flows into them.
    scores: [N, V, K], of all V crops in the same order, V > 1; softmax(scores/τ) is the prediction.
    Returns the mean over N images and the C·(V-1) pairs of different crops of -Σ_k target·log prediction.
    Computed in float32 under autocast; float64 stays. Raises ValueError if the shapes do not fit.
    """
    (n, c, k), v = targets.shape, scores.shape[1]
    if scores.shape != (n, v, k) or not 1 <= c <= v or v < 2:
        raise ValueError(f"expected [N, C, K] and [N, V, K], got {list(targets.shape)} and {list(scores.shape)}")
    with torch.autocast(scores.device.type, enabled=False):
        log_p = F.log_softmax(full_precision(scores) / temperature, dim=2)
        others = log_p.sum(1, keepdim=True) - log_p[:, :c]
        return -(targets.detach() * others).sum(2).mean() / (v - 1)
