"""Losses as pure functions of embeddings, independent of networks, batches and runs.

Contrastive losses are split into logits, with excluded candidates at -inf, and a loss of logits.
`contrastive_health` uses the same logits. Those of a large batch are computed in blocks of rows (`pair_loss`).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

EPSILON = 1e-6
"""Smallest norm to divide by, as in the official code of SimCLR and of BYOL (1e-12 on the squared norm)."""
BLOCK = 2**21
"""Most similarities of a large batch that are in memory at once: 8 MiB in float32."""


# --- pairs of views in a batch: SimCLR ---


def nt_xent(
    z0: Tensor, z1: Tensor, temperature: float = 0.5, normalize: bool = True, both_views: bool = True
) -> Tensor:
    """NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, Eq. 1 and Algorithm 1).

    z0, z1: [N, D], two views of the same N images, in the same order; of any scale if `normalize`.
    temperature: τ > 0; the paper's best is 0.1 on ImageNet (Table 5) and 0.5 on CIFAR-10 (B.9).
    normalize, both_views: see `pair_logits`.
    Returns the mean over all 2N views of the cross entropy of identifying the other view of the same image among
    the 2N-1 others: log(2N-1) where all embeddings are equal. Computed in float32 under autocast; float64
    stays.
    Raises ValueError if the shapes do not pair up.
    """
    return pair_loss(pair_cross_entropy, z0, z1, temperature, normalize, both_views)


def nt_logistic(
    z0: Tensor,
    z1: Tensor,
    temperature: float = 0.5,
    semi_hard: bool = False,
    normalize: bool = True,
    both_views: bool = True,
) -> Tensor:
    """NT-Logistic (Chen et al. 2020, Table 2, negated): -log σ(u·v⁺/τ) - log σ(-u·v⁻/τ).

    temperature: τ > 0; the paper tried 0.1, 0.2, 0.5 and 1 (B.10).
    Everything else is as in `margin`: the mean over views u of the mean over their negatives v⁻. 2·log 2 where all
    embeddings are orthogonal.
    """
    return pair_loss(partial(pair_logistic, semi_hard=semi_hard), z0, z1, temperature, normalize, both_views)


def margin(
    z0: Tensor,
    z1: Tensor,
    margin: float = 0.4,
    semi_hard: bool = False,
    normalize: bool = True,
    both_views: bool = True,
) -> Tensor:
    """Margin loss (Schroff et al. 2015; Chen et al. 2020, Table 2, negated): max(u·v⁻ - u·v⁺ + m, 0).

    z0, z1: [N, D], two views of the same N images, in the same order.
    margin: m ≥ 0, in units of the dot product; the paper tried 0, 0.4, 0.8 and 1.6 (B.10).
    semi_hard: of each view's negatives keep the closest that is farther than its positive (5.1), and none if
    all are closer.
    normalize, both_views: see `pair_logits`; the paper's Table 4 takes its negatives from one view.
    Returns the mean over all 2N views u of the mean over their negatives v⁻. Precision and errors as `nt_xent`.
    """
    loss = partial(pair_margin, margin=margin, semi_hard=semi_hard)
    return pair_loss(loss, z0, z1, 1.0, normalize, both_views)


def pair_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    z0: Tensor,
    z1: Tensor,
    temperature: float = 0.5,
    normalize: bool = True,
    both_views: bool = True,
) -> Tensor:
    """Mean over all 2N views of a loss of their rows of `pair_logits`, in memory that grows with N, not with N².

    loss: (rows of logits [R, 2N], the column of each row's positive [R]) -> their mean loss, such as
    `pair_cross_entropy`. If there are more than 2·BLOCK logits they are computed in blocks of rows, and recomputed
    for the gradient. Everything else is as in `pair_logits`.
    """
    z = _both(z0, z1, normalize)
    all_rows = torch.arange(len(z), device=z.device)

    def of_rows(z: Tensor, rows: Tensor) -> Tensor:
        return loss(_row_logits(z, rows, temperature, both_views), _partners(rows, len(z)))

    if len(z) ** 2 <= 2 * BLOCK:
        return of_rows(z, all_rows)
    blocks = all_rows.split(max(1, BLOCK // len(z)))
    block_losses = [checkpoint(of_rows, z, rows, use_reentrant=False, preserve_rng_state=False) for rows in blocks]
    return torch.stack([block_loss * len(rows) for block_loss, rows in zip(block_losses, blocks)]).sum() / len(z)


def pair_logits(
    z0: Tensor, z1: Tensor, temperature: float = 0.5, normalize: bool = True, both_views: bool = True
) -> Tensor:
    """Return sim(z_i, z_k)/τ for all pairs of 2N views, [2N, 2N]; -inf on the diagonal, for k ≠ i in Eq. 1.

    normalize: sim is the cosine similarity; else the dot product, as in the lower half of Table 5.
    both_views: an image's negatives are both views of the others; else only the one of the other branch, as
    in Table 4 (footnote 8).
    """
    z = _both(z0, z1, normalize)
    return _row_logits(z, torch.arange(len(z), device=z.device), temperature, both_views)


def _both(z0: Tensor, z1: Tensor, normalize: bool) -> Tensor:
    _check_pair(z0, z1)
    z = full_precision(torch.cat([z0, z1]))
    return _unit(z) if normalize else z


def _row_logits(z: Tensor, rows: Tensor, temperature: float, both_views: bool) -> Tensor:
    """Return some rows of `pair_logits`, [R, 2N]."""
    with torch.autocast(z.device.type, enabled=False):
        logits = (z[rows] / temperature) @ z.T
    columns, half = torch.arange(len(z), device=z.device), len(z) // 2
    excluded = rows[:, None] == columns if both_views else (rows >= half)[:, None] == (columns >= half)
    return logits.masked_fill_(excluded, -torch.inf)


def pair_cross_entropy(logits: Tensor, partners: Tensor | None = None) -> Tensor:
    """Mean cross entropy of rows of `pair_logits` with each view's partner, N rows away, as the target."""
    return F.cross_entropy(logits, _columns(logits, partners))


def pair_logistic(logits: Tensor, partners: Tensor | None = None, semi_hard: bool = False) -> Tensor:
    """`nt_logistic` in terms of rows of `pair_logits`."""
    positive, negatives = _split(logits, _columns(logits, partners), semi_hard)
    return _mean_over_negatives(-F.logsigmoid(-negatives), negatives) - F.logsigmoid(positive).mean()


def pair_margin(logits: Tensor, partners: Tensor | None = None, margin: float = 0.4, semi_hard: bool = False) -> Tensor:
    """`margin` in terms of rows of `pair_logits` with temperature 1."""
    positive, negatives = _split(logits, _columns(logits, partners), semi_hard)
    return _mean_over_negatives((negatives - positive + margin).relu(), negatives)


def _split(logits: Tensor, partners: Tensor, semi_hard: bool) -> tuple[Tensor, Tensor]:
    """Return positives [R, 1] and negatives [R, K], -inf where excluded."""
    positive = logits.gather(1, partners[:, None])
    if semi_hard:
        return positive, logits.masked_fill(logits >= positive, -torch.inf).amax(1, keepdim=True)
    return positive, logits.scatter(1, partners[:, None], -torch.inf)


def _mean_over_negatives(terms: Tensor, negatives: Tensor) -> Tensor:
    # The term of a negative that is -inf is 0.
    return (terms.sum(1) / negatives.isfinite().sum(1).clamp_min(1)).mean()


def _partners(rows: Tensor, views: int) -> Tensor:
    return (rows + views // 2) % views


def _columns(logits: Tensor, partners: Tensor | None) -> Tensor:
    if partners is not None:
        return partners
    return _partners(torch.arange(len(logits), device=logits.device), logits.shape[1])


def pair_health(
    z0: Tensor, z1: Tensor, temperature: float = 0.5, normalize: bool = True, both_views: bool = True, rows: int = 256
) -> dict[str, Tensor]:
    """`contrastive_health` of the first rows of `pair_logits`."""
    with torch.no_grad():
        z = _both(z0, z1, normalize)
        return contrastive_health(
            _row_logits(z, torch.arange(min(rows, len(z)), device=z.device), temperature, both_views), temperature
        )


# --- queries, keys and a queue: MoCo ---


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE against a queue of negatives (He et al. 2020, arXiv:1911.05722, Eq. 1 and Algorithm 1).

    q, k: [N, D], queries and their keys, in the same order, any scale; no gradient flows into k or the queue.
    queue: [K, D], the negatives, of unit length, as `sslkit.nn.queues.Queue` keeps them.
    temperature: τ > 0; 0.07 in MoCo, 0.2 in MoCo v2 (arXiv:2003.04297, Table 2).
    Returns the mean over queries of the cross entropy of identifying the key among itself and the queue: log(K+1) where
    all are equal. Computed in float32 under autocast; float64 stays. Raises ValueError if the shapes differ.
    """
    return queue_cross_entropy(queue_logits(q, k, queue, temperature))


def queue_logits(q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """Return cos(q, ·)/τ of each query with its key, in column 0, and with every row of the queue, [N, 1+K]."""
    _check_pair(q, k)
    with torch.autocast(q.device.type, enabled=False):
        q, k = _unit(q) / temperature, _unit(k.detach())
        positive = (q * k).sum(1, keepdim=True)
        return torch.cat([positive, q @ queue.detach().to(q.dtype).T], dim=1)


def queue_cross_entropy(logits: Tensor) -> Tensor:
    """Mean cross entropy of `queue_logits` with column 0 as the target."""
    return F.cross_entropy(logits, _first(logits))


def queue_health(logits: Tensor, temperature: float = 1.0, rows: int = 256) -> dict[str, Tensor]:
    """`contrastive_health` of `queue_logits`."""
    return contrastive_health(logits, temperature, rows, _first(logits))


def _first(logits: Tensor) -> Tensor:
    return torch.zeros(len(logits), dtype=torch.int64, device=logits.device)


@torch.no_grad()
def contrastive_health(
    logits: Tensor, temperature: float = 1.0, rows: int = 256, positives: Tensor | None = None
) -> dict[str, Tensor]:
    """Measure how well views identify their partners, from the first rows of contrastive logits (SimCLR, Table 5).

    positives: [N], the column of each row's positive; None: the partners of `pair_logits`, from its first row on.
    temperature: divisor of the similarities in the logits.
    contrastive_accuracy: top-1 accuracy among the candidates, 0 to 1 (chance is 1/(2N-1) for `pair_logits`).
    contrastive_entropy: mean entropy of the softmax over the candidates in nats, 0 to log(2N-1).
    positive_similarity, negative_similarity: mean over all pairs, -1 to 1 for cosine similarity.
    """
    columns = _columns(logits, positives)[:rows, None]
    some = logits[:rows]
    negatives = some.scatter(1, columns, -torch.inf)
    counted = negatives.isfinite()
    return {
        "contrastive_accuracy": (some.argmax(1, keepdim=True) == columns).float().mean(),
        "contrastive_entropy": torch.special.entr(some.softmax(1)).sum(1).mean(),
        "positive_similarity": temperature * some.gather(1, columns).mean(),
        "negative_similarity": temperature * negatives.where(counted, 0).sum() / counted.sum().clamp_min(1),
    }


# --- regression: BYOL ---


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """BYOL's regression loss (Grill et al. 2020, Eq. 2), for one direction.

    prediction: [N, D], the online network's; target: [N, D], the target network's; no gradient flows into it.
    Returns the mean over rows of ‖p/‖p‖ - t/‖t‖‖² = 2 - 2·cos(p, t), between 0 and 4. Computed in float32
    under autocast; float64 stays. Raises ValueError if the shapes differ.
    """
    _check_pair(prediction, target)
    with torch.autocast(prediction.device.type, enabled=False):
        difference = _unit(prediction) - _unit(target.detach())
        return difference.square().sum(1).mean()


# --- common ---


def _unit(z: Tensor) -> Tensor:
    return F.normalize(full_precision(z), dim=1, eps=EPSILON)


def full_precision(z: Tensor) -> Tensor:
    """Convert to float32, in which losses are computed under autocast; float64 is kept."""
    return z if z.dtype == torch.float64 else z.float()


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two tensors of one shape [N, D], got {list(a.shape)} and {list(b.shape)}")
