"""Losses against the papers' formulas written as slow loops, against lightly, and at their closed forms."""

import math

import pytest
import torch
from torch import Tensor

from sslkit.losses import byol, contrastive_health, nt_xent, pair_logits

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


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_byol_is_equation_2(n, dim):
    p, t = embeddings(n, dim)
    mine = value_and_gradients(byol(p, t), [p])
    torch.testing.assert_close(mine, value_and_gradients(slow_byol(p, t), [p]), rtol=1e-10, atol=1e-13)


def test_gradients_agree_with_differences():
    z = embeddings(5, 4)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), z)
    assert torch.autograd.gradcheck(lambda a: byol(a, z[1]), [z[0]])


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_lightly_agrees(n, dim):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z = embeddings(n, dim)
    theirs = value_and_gradients(lightly.NTXentLoss(temperature=0.5)(*z), z)
    torch.testing.assert_close(value_and_gradients(nt_xent(*z), z), theirs, rtol=1e-8, atol=1e-10)
    cosine = lightly.NegativeCosineSimilarity()(z[0], z[1].detach())
    torch.testing.assert_close(byol(*z), 2 + 2 * cosine)


@pytest.mark.parametrize("n", [2, 8, 100])
def test_nt_xent_of_equal_embeddings(n):
    z = torch.randn(1, 16, dtype=torch.float64).expand(n, -1)
    assert nt_xent(z, z).item() == pytest.approx(math.log(2 * n - 1), rel=1e-12)


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


@pytest.mark.parametrize("loss", [nt_xent, byol])
def test_zero_vectors_give_finite_values_and_gradients(loss):
    z = torch.zeros(4, 3, requires_grad=True)
    value = loss(z, torch.randn(4, 3))
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("loss", [nt_xent, byol])
def test_float32_under_autocast_and_for_half_inputs(loss):
    z0, z1 = (z.detach() for z in embeddings(16, 32))
    exact = loss(z0, z1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(z0.float(), z1.float())
    assert exact.dtype == torch.float64
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(exact.item(), rel=1e-5)
    assert loss(z0.bfloat16(), z1.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("loss", [nt_xent, byol])
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


def test_health_counts_views_that_find_their_partner():
    z0 = torch.eye(4)
    z1 = torch.eye(4)[[0, 1, 3, 2]]
    health = contrastive_health(pair_logits(z0, z1))
    assert health["contrastive_accuracy"] == 0.5
    few = contrastive_health(pair_logits(z0, z1), rows=2)
    assert few["contrastive_accuracy"] == 1
