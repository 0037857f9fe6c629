"""Sinkhorn-Knopp, the loss across crops and prototypes: against their papers and against lightly."""

import math

import numpy as np
import pytest
import torch
from sslkit_clustering.assignments import Prototypes, sinkhorn, swapped_cross_entropy
from torch.nn import functional as F


def cosines(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1).requires_grad_()


def distributions(*shape, seed=5):
    return cosines(*shape, seed=seed).detach().mul(3).softmax(-1)


# --- Sinkhorn-Knopp ---


def slow_sinkhorn(scores, epsilon, iterations):
    """Caron et al. 2020, Algorithm 1, `sinkhorn`, entry by entry."""
    q = np.exp(scores.T / epsilon)
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        for row in range(k):
            q[row] *= (1 / k) / q[row].sum()
        for column in range(b):
            q[:, column] *= (1 / b) / q[:, column].sum()
    return (q / q.sum(0)).T


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize(("n", "k", "epsilon"), [(6, 4, 0.05), (5, 9, 0.05), (32, 7, 0.5)])
def test_sinkhorn_is_algorithm_1(n, k, epsilon, iterations):
    scores = cosines(n, k).detach()
    slow = slow_sinkhorn(scores.numpy(), epsilon, iterations)
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), torch.from_numpy(slow), rtol=1e-9, atol=1e-12)


def test_sinkhorn_marginals():
    codes = sinkhorn(cosines(20, 8), epsilon=0.2, iterations=300)
    torch.testing.assert_close(codes.sum(1), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full((8,), 20 / 8, dtype=torch.float64))
    assert not codes.requires_grad


def test_sinkhorn_of_equal_scores_is_uniform():
    torch.testing.assert_close(sinkhorn(torch.full((5, 4), 0.3)), torch.full((5, 4), 0.25))


def test_sinkhorn_does_not_overflow():
    codes = sinkhorn(cosines(6, 4).float(), epsilon=1e-4)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(1), torch.ones(6))


def test_absent_rows_do_not_count():
    scores, absent = cosines(9, 4).detach(), torch.arange(9) >= 6
    codes = sinkhorn(scores, absent=absent)
    torch.testing.assert_close(codes[:6], sinkhorn(scores[:6]))
    assert not torch.allclose(codes[:6], sinkhorn(scores)[:6])


# --- the loss across crops ---


def slow_swapped(targets, scores, tau):
    """SwAV's Eq. 2 and 6, DINO's Eq. 3: the mean over images and pairs of different crops."""
    terms = []
    for n in range(len(targets)):
        for target in range(targets.shape[1]):
            for crop in range(scores.shape[1]):
                if crop != target:
                    p = (scores[n, crop] / tau).exp() / (scores[n, crop] / tau).exp().sum()
                    terms.append(-(targets[n, target] * p.log()).sum())
    return sum(terms) / len(terms)


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize(("c", "v"), [(2, 2), (2, 8), (1, 2), (3, 3)])
def test_loss_is_the_papers(c, v, tau):
    targets, scores = distributions(4, c, 5), cosines(4, v, 5)
    mine, slow = swapped_cross_entropy(targets, scores, tau), slow_swapped(targets, scores, tau)
    torch.testing.assert_close(mine, slow, rtol=1e-12, atol=0)
    mine, slow = (torch.autograd.grad(loss, scores)[0] for loss in (mine, slow))
    torch.testing.assert_close(mine, slow, rtol=1e-10, atol=1e-13)


def test_gradients_agree_with_differences():
    targets = distributions(3, 2, 4)
    assert torch.autograd.gradcheck(lambda scores: swapped_cross_entropy(targets, scores, 0.3), [cosines(3, 4, 4)])


def test_loss_at_its_closed_forms():
    targets = distributions(4, 2, 7)
    assert swapped_cross_entropy(targets, torch.zeros(4, 6, 7)).item() == pytest.approx(math.log(7))
    same = torch.eye(7)[:4, None].expand(-1, 3, -1)
    assert swapped_cross_entropy(same[:, :2], 20 * same).item() == pytest.approx(0, abs=1e-6)


def test_targets_get_no_gradient():
    targets = distributions(4, 2, 5).requires_grad_()
    swapped_cross_entropy(targets, cosines(4, 3, 5)).backward()
    assert targets.grad is None


@pytest.mark.parametrize(
    ("targets", "scores"), [((4, 2, 5), (4, 3, 6)), ((4, 1, 5), (4, 1, 5)), ((4, 3, 5), (4, 2, 5))]
)
def test_shapes_that_do_not_fit(targets, scores):
    with pytest.raises(ValueError, match=r"expected \[N, C, K\]"):
        swapped_cross_entropy(torch.zeros(targets), torch.zeros(scores))


@pytest.mark.parametrize("queued", [0, 9])
def test_lightly_agrees_on_swav(queued):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    scores, queue = cosines(6, 5, 4), cosines(queued, 2, 4, seed=3).detach()
    crops = list(scores.unbind(1))
    theirs = lightly.SwaVLoss()(crops[:2], crops[2:], list(queue.unbind(1)) if queued else None)
    everyone = [torch.cat([scores[:, view].detach(), queue[:, view]]) for view in range(2)]
    codes = torch.stack([sinkhorn(rows)[:6] for rows in everyone], dim=1)
    mine = swapped_cross_entropy(codes, scores)
    torch.testing.assert_close(mine, theirs.squeeze())
    grads = [torch.autograd.grad(loss.sum(), scores, retain_graph=True)[0] for loss in (mine, theirs)]
    torch.testing.assert_close(*grads)


# --- prototypes ---


def test_prototypes_give_cosines():
    prototypes, z = Prototypes(4, 3).double(), 5 * cosines(2, 6, 4)
    out = prototypes(z)
    assert out.shape == (2, 6, 3)
    torch.testing.assert_close(out[1, 2, 0], F.cosine_similarity(z[1, 2], prototypes.weight[0], dim=0))
    with torch.autocast("cpu", torch.bfloat16):
        assert prototypes.float()(z.bfloat16()).dtype == torch.float32


def test_frozen_prototypes_stay():
    prototypes = Prototypes(4, 3)
    z = torch.randn(5, 4, requires_grad=True)
    for frozen in (True, False):
        z.grad = prototypes.weight.grad = None
        out = prototypes(z, frozen=torch.tensor(frozen))
        torch.testing.assert_close(out, prototypes(z))
        out.square().sum().backward()
        assert z.grad.norm() > 0
        assert (prototypes.weight.grad.norm() == 0) == frozen
