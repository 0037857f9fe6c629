"""Losses against the papers' formulas written as slow loops, against lightly, and at their closed forms."""

import math

import pytest
import torch
from torch import Tensor

from sslkit.nn.losses import (
    byol,
    contrastive_health,
    info_nce,
    margin,
    nt_logistic,
    nt_xent,
    pair_logistic,
    pair_logits,
    pair_margin,
    queue_health,
    queue_logits,
)
from sslkit.testing import check_precision

PAIR_LOSSES = [nt_xent, nt_logistic, margin, byol]
SHAPES = [(2, 8), (7, 8), (7, 128), (64, 128)]


def embeddings(n: int, dim: int, count: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(count)]


def slow_nt_xent(z0: Tensor, z1: Tensor, tau: float) -> Tensor:
    """Chen et al. 2020, Algorithm 1, with its numbering: views 2k-1 and 2k are of image k."""
    z = [view for pair in zip(z0, z1) for view in pair]

    def s(i: int, j: int) -> Tensor:
        return z[i] @ z[j] / (z[i].norm() * z[j].norm())

    def loss(i: int, j: int) -> Tensor:
        others = torch.stack([(s(i, k) / tau).exp() for k in range(len(z)) if k != i])
        return -((s(i, j) / tau).exp() / others.sum()).log()

    pairs = [loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(len(z0))]
    return sum(pairs) / len(z)


def slow_table_2(loss: str, z0: Tensor, z1: Tensor, scale: float, semi_hard=False, normalize=True, both_views=True):
    """Chen et al. 2020, Table 2, negated, an anchor at a time; `scale` is τ or m."""
    if normalize:
        z0, z1 = (torch.stack([row / row.norm() for row in z]) for z in (z0, z1))
    anchors = []
    for mine, other in ((z0, z1), (z1, z0)):
        for i, u in enumerate(mine):
            v = u @ other[i]
            candidates = [other, mine] if both_views else [other]
            negatives = [u @ view[j] for view in candidates for j in range(len(mine)) if j != i]
            if semi_hard:
                negatives = sorted((n for n in negatives if n < v), reverse=True)[:1]
            if loss == "nt_xent":
                anchors.append(-((v / scale).exp() / sum((n / scale).exp() for n in [v, *negatives])).log())
            elif loss == "nt_logistic":
                repel = [-(1 / (1 + (n / scale).exp())).log() for n in negatives]
                anchors.append(-(1 / (1 + (-v / scale).exp())).log() + sum(repel) / max(1, len(repel)))
            else:
                excess = [n - v + scale for n in negatives if n - v + scale > 0]
                anchors.append(0 * v + sum(excess) / max(1, len(negatives)))
    return sum(anchors) / len(anchors)


def slow_info_nce(q: Tensor, k: Tensor, queue: Tensor, tau: float) -> Tensor:
    """He et al. 2020, Eq. 1, a query at a time."""
    losses = []
    for query, key in zip(q, k.detach()):
        query, key = query / query.norm(), key / key.norm()
        others = [(query @ row / tau).exp() for row in queue]
        losses.append(-((query @ key / tau).exp() / ((query @ key / tau).exp() + sum(others))).log())
    return sum(losses) / len(losses)


def unit_rows(n: int, dim: int) -> Tensor:
    return torch.nn.functional.normalize(embeddings(n, dim, 1, seed=5)[0].detach(), dim=1)


def slow_byol(prediction: Tensor, target: Tensor) -> Tensor:
    """Grill et al. 2020, Eq. 2, a row at a time."""
    rows = [2 - 2 * (q @ z) / (q.norm() * z.norm()) for q, z in zip(prediction, target.detach())]
    return sum(rows) / len(rows)


def value_and_gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs, allow_unused=True)]


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
@pytest.mark.parametrize(("n", "dim"), SHAPES[:3])
def test_nt_xent_is_algorithm_1(n, dim, tau):
    z = embeddings(n, dim)
    mine = value_and_gradients(nt_xent(*z, temperature=tau), z)
    slow = value_and_gradients(slow_nt_xent(*z, tau), z)
    torch.testing.assert_close(mine, slow, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("both_views", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("semi_hard", [False, True])
@pytest.mark.parametrize(("loss", "scale"), [(nt_logistic, 0.2), (nt_logistic, 1.0), (margin, 0.4), (margin, 1.6)])
def test_table_2(loss, scale, semi_hard, normalize, both_views):
    z = embeddings(7, 8)
    options = {"semi_hard": semi_hard, "normalize": normalize, "both_views": both_views}
    mine = value_and_gradients(loss(*z, scale, **options), z)
    slow = value_and_gradients(slow_table_2(loss.__name__, *z, scale, **options), z)
    torch.testing.assert_close(mine, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("normalize", "both_views"), [(False, True), (True, False), (False, False)])
def test_nt_xent_of_dot_products_and_of_one_view(normalize, both_views):
    z = embeddings(7, 8)
    mine = value_and_gradients(nt_xent(*z, 0.5, normalize, both_views), z)
    slow = slow_table_2("nt_xent", *z, 0.5, normalize=normalize, both_views=both_views)
    torch.testing.assert_close(mine, value_and_gradients(slow, z), rtol=1e-10, atol=1e-12)


def test_semi_hard_is_the_closest_of_the_farther_or_none():
    logits = torch.tensor(
        [
            [-torch.inf, 0.9, 0.5, 0.4],  # 0.9 is closer than the positive, 0.5: 0.4 remains
            [0.3, -torch.inf, 0.2, 0.6],  # of two that are farther than 0.6, 0.3
            [0.1, 0.8, -torch.inf, 0.7],  # both are closer than 0.1
            [0.5, 0.5, 0.45, -torch.inf],  # an equal one is not farther
        ],
        dtype=torch.float64,
    )
    assert pair_margin(logits, margin=0.2, semi_hard=True).item() == pytest.approx((0.1 + 0 + 0 + 0.15) / 4)
    attract = sum(math.log1p(math.exp(-p)) for p in (0.5, 0.6, 0.1, 0.5))
    repel = sum(math.log1p(math.exp(n)) for n in (0.4, 0.3, 0.45))
    assert pair_logistic(logits, semi_hard=True).item() == pytest.approx((attract + repel) / 4)


@pytest.mark.parametrize(("n", "dim", "size"), [(2, 8, 1), (7, 8, 20), (7, 64, 33)])
@pytest.mark.parametrize("tau", [0.07, 0.2])
def test_info_nce_is_equation_1(n, dim, size, tau):
    q, k = embeddings(n, dim)
    queue = unit_rows(size, dim)
    mine = value_and_gradients(info_nce(q, k, queue, tau), [q])
    torch.testing.assert_close(mine, value_and_gradients(slow_info_nce(q, k, queue, tau), [q]), rtol=1e-10, atol=1e-13)


def test_info_nce_sends_no_gradient_into_keys_and_queue():
    q, k = embeddings(4, 3)
    queue = unit_rows(5, 3).requires_grad_()
    info_nce(q, k, queue).backward()
    assert q.grad is not None
    assert k.grad is None
    assert queue.grad is None


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_byol_is_equation_2(n, dim):
    p, t = embeddings(n, dim)
    mine = value_and_gradients(byol(p, t), [p])
    torch.testing.assert_close(mine, value_and_gradients(slow_byol(p, t), [p]), rtol=1e-10, atol=1e-13)


def test_gradients_agree_with_differences():
    z = embeddings(5, 4)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), z)
    assert torch.autograd.gradcheck(lambda a: byol(a, z[1]), [z[0]])
    assert torch.autograd.gradcheck(lambda a: info_nce(a, z[1], unit_rows(6, 4)), [z[0]])
    for loss in (nt_logistic, margin):
        for semi_hard in (False, True):
            assert torch.autograd.gradcheck(loss, (*z, 0.3, semi_hard))


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_lightly_agrees(n, dim):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z = embeddings(n, dim)
    theirs = value_and_gradients(lightly.NTXentLoss(temperature=0.5)(*z), z)
    torch.testing.assert_close(value_and_gradients(nt_xent(*z), z), theirs, rtol=1e-8, atol=1e-10)
    cosine = lightly.NegativeCosineSimilarity()(z[0], z[1].detach())
    torch.testing.assert_close(byol(*z), 2 + 2 * cosine)


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_lightly_agrees_on_a_memory_bank(n, dim):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    q, k = embeddings(n, dim)
    queue = unit_rows(70, dim)
    theirs = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(70, dim))
    theirs.memory_bank.bank = queue.clone()
    expected = value_and_gradients(theirs(q, k.detach()), [q])
    torch.testing.assert_close(value_and_gradients(info_nce(q, k, queue), [q]), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n", [2, 8, 100])
def test_nt_xent_of_equal_embeddings(n):
    z = torch.randn(1, 16, dtype=torch.float64).expand(n, -1)
    assert nt_xent(z, z).item() == pytest.approx(math.log(2 * n - 1), rel=1e-12)


@pytest.mark.parametrize("n", [2, 8])
def test_other_losses_of_equal_embeddings(n):
    z = torch.randn(1, 16, dtype=torch.float64).expand(n, -1)
    both = 2 * math.log1p(math.exp(2)) - 2
    assert nt_logistic(z, z, 0.5).item() == pytest.approx(both, rel=1e-12)
    assert margin(z, z, 0.7).item() == pytest.approx(0.7, rel=1e-12)
    same = torch.eye(4, dtype=torch.float64)[:1]
    assert info_nce(same.expand(n, -1), same.expand(n, -1), same.expand(9, -1)).item() == pytest.approx(math.log(10))
    halves = torch.full((n, 4), 0.5, dtype=torch.float64)
    assert margin(halves, halves, 0.7, semi_hard=True).item() == 0
    assert nt_logistic(halves, halves, 0.5, semi_hard=True).item() == pytest.approx(both - math.log1p(math.exp(2)))


def test_other_losses_of_orthogonal_embeddings():
    z = torch.eye(8, dtype=torch.float64)
    assert nt_logistic(z[:4], z[4:], 0.1).item() == pytest.approx(2 * math.log(2), rel=1e-12)
    assert margin(z, z, 0.9).item() == 0
    assert margin(z, z, 1.6).item() == pytest.approx(0.6, rel=1e-9)
    assert info_nce(z[:2], 3 * z[:2], z[2:], 0.1).item() == pytest.approx(math.log1p(6 * math.exp(-10)), rel=1e-9)


def test_nt_xent_of_perfect_pairs():
    z = torch.eye(8, dtype=torch.float64)
    others = 14 * math.exp(0)
    assert nt_xent(z, 3 * z, 0.1).item() == pytest.approx(math.log(1 + others * math.exp(-10)), rel=1e-9)


def test_byol_between_0_and_4():
    p = embeddings(6, 5)[0]
    assert byol(p, 7 * p).item() == pytest.approx(0, abs=1e-12)
    assert byol(p, -2 * p).item() == pytest.approx(4, rel=1e-12)
    a, b = torch.eye(2, dtype=torch.float64)
    assert byol(a[None], b[None]).item() == pytest.approx(2, rel=1e-12)


def test_scale_does_not_matter():
    z0, z1 = embeddings(6, 5)
    scale = torch.rand(6, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(nt_xent(scale * z0, 5 * z1), nt_xent(z0, z1))
    torch.testing.assert_close(byol(scale * z0, 5 * z1), byol(z0, z1))
    torch.testing.assert_close(margin(scale * z0, 5 * z1), margin(z0, z1))
    torch.testing.assert_close(info_nce(scale * z0, 5 * z1, unit_rows(4, 5)), info_nce(z0, z1, unit_rows(4, 5)))


def test_views_may_be_swapped_and_images_permuted():
    z0, z1 = embeddings(9, 5)
    order = torch.randperm(9)
    torch.testing.assert_close(nt_xent(z1, z0), nt_xent(z0, z1))
    torch.testing.assert_close(nt_xent(z0[order], z1[order]), nt_xent(z0, z1))


def test_byol_sends_no_gradient_into_the_target():
    p, t = embeddings(4, 3)
    byol(p, t).backward()
    assert p.grad is not None
    assert t.grad is None


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_zero_vectors_give_finite_values_and_gradients(loss):
    z = torch.zeros(4, 3, requires_grad=True)
    value = loss(z, torch.randn(4, 3))
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


def queued(q: Tensor, k: Tensor) -> Tensor:
    return info_nce(q, k, unit_rows(40, 32).float())


@pytest.mark.parametrize("loss", [*PAIR_LOSSES, queued])
def test_float32_under_autocast_and_for_half_inputs(loss):
    check_precision(loss, *embeddings(16, 32))


@pytest.mark.parametrize("loss", [*PAIR_LOSSES, queued])
def test_shapes_that_do_not_pair_are_refused(loss):
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(4), torch.zeros(4))


def test_health_of_perfect_and_of_uninformative_pairs():
    perfect = contrastive_health(pair_logits(torch.eye(8), torch.eye(8), 0.01))
    assert perfect["contrastive_accuracy"] == 1
    assert perfect["contrastive_entropy"] < 1e-6
    equal = contrastive_health(pair_logits(torch.ones(8, 4), torch.ones(8, 4)))
    assert equal["contrastive_entropy"].item() == pytest.approx(math.log(15), rel=1e-5)


@pytest.mark.parametrize("both_views", [True, False])
def test_health_measures_similarities_in_their_own_units(both_views):
    z0, z1 = embeddings(5, 3)
    a, b = (torch.nn.functional.normalize(z.detach(), dim=1) for z in (z0, z1))
    health = contrastive_health(pair_logits(a, b, 0.2, both_views=both_views), 0.2)
    apart = ~torch.eye(5, dtype=torch.bool)
    blocks = [a @ b.T, b @ a.T, *([a @ a.T, b @ b.T] if both_views else [])]
    assert health["positive_similarity"].item() == pytest.approx((a * b).sum(1).mean().item())
    expected = torch.stack([block[apart] for block in blocks]).mean().item()
    assert health["negative_similarity"].item() == pytest.approx(expected)


def test_health_of_a_queue():
    eye = torch.eye(6)
    health = queue_health(queue_logits(eye[:2], eye[[0, 2]], eye[[1, 3, 4, 5]], 0.5), 0.5)
    assert health["contrastive_accuracy"] == 0.5
    assert health["positive_similarity"] == 0.5
    assert health["negative_similarity"] == 1 / 8
    lost = queue_health(queue_logits(eye[:2], -eye[:2], eye[2:], 0.01), 0.01)
    assert lost["contrastive_accuracy"] == 0
    assert lost["contrastive_entropy"].item() == pytest.approx(math.log(4), rel=1e-5)


def test_health_counts_views_that_find_their_partner():
    z0 = torch.eye(4)
    z1 = torch.eye(4)[[0, 1, 3, 2]]
    health = contrastive_health(pair_logits(z0, z1))
    assert health["contrastive_accuracy"] == 0.5
    few = contrastive_health(pair_logits(z0, z1), rows=2)
    assert few["contrastive_accuracy"] == 1


@pytest.mark.parametrize("loss", [nt_xent, nt_logistic, margin])
@pytest.mark.parametrize("options", [{}, {"both_views": False}, {"normalize": False}])
def test_blocks_of_rows_change_nothing(loss, options, monkeypatch):
    z0, z1 = (torch.randn(9, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    whole = loss(z0, z1, **options)
    grads = torch.autograd.grad(whole, (z0, z1))
    monkeypatch.setattr("sslkit.nn.losses.BLOCK", 4 * 18)
    blocks = loss(z0, z1, **options)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(torch.autograd.grad(blocks, (z0, z1)), grads)
