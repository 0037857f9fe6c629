"""The losses against their papers' formulas as slow loops, against lightly, and at closed forms."""

import cmath
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from sslkit_fewsteps.losses import (
    GAUSSIAN_STATISTIC,
    KNOTS,
    LARGEST_T,
    dcl,
    dclw,
    empssl,
    empssl_terms,
    epps_pulley,
    largest_coding_rate,
    lejepa,
    lejepa_terms,
    positive_weights,
    random_directions,
    sigreg,
    total_coding_rate,
)

from sslkit.nn import losses as core
from sslkit.testing import check_precision

# More images than dimensions and fewer: the coding rate takes the smaller matrix.
SHAPES = [(2, 6), (5, 6), (6, 6), (9, 4)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def views(n, count, dim, seed=0):
    """[n, count, dim]: related views of n images, with gradient."""
    image = torch.randn(n, 1, dim, generator=seeded(seed), dtype=torch.float64)
    noise = torch.randn(n, count, dim, generator=seeded(seed + 1), dtype=torch.float64)
    return (image + 0.5 * noise).requires_grad_()


def pair(n, dim, seed=0):
    return [view.detach().clone().requires_grad_() for view in views(n, 2, dim, seed).unbind(1)]


def axes(dim, count, seed):
    """Directions of unit length in float64."""
    drawn = torch.randn(dim, count, generator=seeded(seed), dtype=torch.float64)
    return drawn / drawn.norm(dim=0)


def value_and_gradients(loss, *inputs):
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def cosine(a, b):
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


# --- EMP-SSL ---


def slow_coding_rate(z, eps):
    """½ log det(I + d/(n ε²) Z Zᵀ), from the product of the d x d matrix's eigenvalues."""
    n, d = z.shape
    matrix = [[sum(z[k, i] * z[k, j] for k in range(n)) * d / (n * eps) + (i == j) for j in range(d)] for i in range(d)]
    return torch.stack([torch.stack(row) for row in matrix]).slogdet().logabsdet / 2


def slow_empssl(z, weight, eps):
    """The official code's loop over patches: loss.py and Similarity_Loss of main.py."""
    n, count, _ = z.shape
    unit = [[z[i, v] / z[i, v].square().sum().sqrt() for v in range(count)] for i in range(n)]
    total = 0
    for v in range(count):
        rate = slow_coding_rate(torch.stack([unit[i][v] for i in range(n)]), eps)
        similarity = mean(cosine(unit[i][v], mean(unit[i])) for i in range(n))
        total = total + rate + weight * similarity
    return -total / count


@pytest.mark.parametrize(("weight", "eps"), [(200.0, 0.2), (0.7, 0.01)])
@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_empssl_is_the_official_loop(n, dim, weight, eps):
    z = views(n, 3, dim)
    mine = value_and_gradients(empssl(z, weight, eps), z)
    torch.testing.assert_close(mine, value_and_gradients(slow_empssl(z, weight, eps), z), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("n", "dim"), [(4, 6), (6, 4)])
def test_coding_rate_of_rows_that_spread_evenly_is_the_largest(n, dim):
    square = torch.linalg.qr(torch.randn(6, 6, generator=seeded(), dtype=torch.float64)).Q
    # Orthogonal rows, or, with more rows than dimensions, columns that are orthogonal and rows of equal length.
    z = square[:n] if n < dim else math.sqrt(6 / dim) * square[:, :dim]
    assert total_coding_rate(z).item() == pytest.approx(largest_coding_rate(n, dim), rel=1e-9)
    other = torch.nn.functional.normalize(torch.randn(n, dim, generator=seeded(), dtype=torch.float64), dim=1)
    assert total_coding_rate(other) < largest_coding_rate(n, dim)


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_coding_rate_of_a_collapsed_batch(n, dim):
    point = torch.nn.functional.normalize(torch.randn(1, dim, generator=seeded(), dtype=torch.float64), dim=1)
    assert total_coding_rate(point.expand(n, -1), 0.2).item() == pytest.approx(math.log1p(dim / 0.2) / 2, rel=1e-9)
    assert total_coding_rate(torch.zeros(n, dim)).item() == 0


def test_empssl_of_equal_patches_and_of_opposite_ones():
    z = views(5, 1, 8).detach().expand(-1, 4, -1)
    assert empssl_terms(z)["similarity"].item() == pytest.approx(1, rel=1e-12)
    right_angles = torch.eye(2, dtype=torch.float64).expand(5, 2, 2)
    assert empssl_terms(right_angles)["similarity"].item() == pytest.approx(math.sqrt(0.5), rel=1e-12)
    opposite = torch.stack([z[:, 0], -z[:, 0]], dim=1).requires_grad_()
    loss = empssl(opposite)
    loss.backward()
    assert opposite.grad.isfinite().all()
    assert empssl_terms(opposite)["similarity"].item() == pytest.approx(0, abs=1e-9)


def test_empssl_knows_no_scale():
    z = views(5, 3, 8)
    scale = torch.rand(5, 3, 1, generator=seeded(), dtype=torch.float64) + 0.1
    torch.testing.assert_close(empssl(scale * z), empssl(z))


# --- LeJEPA ---


def slow_epps_pulley(x):
    """Algorithm 1 on the official code's interval: complex exponentials, and the trapezoid rule from -T to T."""
    step = LARGEST_T / (KNOTS - 1)
    grid = [step * k for k in range(1 - KNOTS, KNOTS)]
    heights = []
    for t in grid:
        target = math.exp(-t * t / 2)
        real, imaginary = mean((t * each).cos() for each in x), mean((t * each).sin() for each in x)
        heights.append(((real - target) ** 2 + imaginary**2) * target)
    return len(x) * sum(step * (low + high) / 2 for low, high in pairwise(heights))


def slow_lejepa(global_z, local_z, directions, weight):
    """Eqs. 8 and 9, a view and a direction at a time; Eq. 8 averaged over dimensions, as in Algorithm 2."""
    n, full, dim = global_z.shape
    z = [[*global_z[i], *(() if local_z is None else local_z[i])] for i in range(n)]
    count = len(z[0])
    prediction = mean(((mean(z[i][:full]) - z[i][v]) ** 2).sum() / dim for i in range(n) for v in range(count))
    regulariser = mean(
        slow_epps_pulley([(z[i][v] * a).sum() for i in range(n)]) for v in range(count) for a in directions.T
    )
    return (1 - weight) * prediction + weight * regulariser


@pytest.mark.parametrize("weight", [0.05, 0.6])
@pytest.mark.parametrize("small", [0, 2])
def test_lejepa_is_equations_8_and_9(small, weight):
    z, directions = views(5, 2 + small, 4), axes(4, 3, seed=7)
    split = z[:, :2], z[:, 2:] if small else None
    mine = value_and_gradients(lejepa(*split, directions, weight), z)
    slow = value_and_gradients(slow_lejepa(*split, directions, weight), z)
    torch.testing.assert_close(mine, slow, rtol=1e-9, atol=1e-12)


def test_epps_pulley_at_one_number():
    """The statistic of Section 4.2.3 with Python's complex numbers, of a sample of one."""
    step = LARGEST_T / (KNOTS - 1)
    heights = [
        abs(cmath.exp(1j * 0.8 * t) - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
        for t in (step * k for k in range(KNOTS))
    ]
    expected = 2 * step * (sum(heights) - heights[0] / 2 - heights[-1] / 2)
    found = epps_pulley(torch.tensor([[0.8]], dtype=torch.float64))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_the_expected_statistic_of_a_gaussian():
    """E|φ̂ - φ|² = (1 - φ²)/N, so the statistic's mean does not depend on N."""
    t = torch.linspace(0, LARGEST_T, KNOTS, dtype=torch.float64)
    phi = torch.exp(-t.square() / 2)
    assert 2 * torch.trapezoid(phi * (1 - phi.square()), t).item() == pytest.approx(GAUSSIAN_STATISTIC, abs=5e-5)
    # The rule comes close to the integral over all t.
    assert pytest.approx(math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3), rel=0.01) == GAUSSIAN_STATISTIC
    for n in (8, 64, 512):
        x = torch.randn(n, 4000, generator=seeded(n))
        assert epps_pulley(x).mean().item() == pytest.approx(GAUSSIAN_STATISTIC, rel=0.06)


def test_sigreg_of_gaussian_embeddings_in_any_width():
    for dim in (2, 16, 128):
        z = torch.randn(512, dim, generator=seeded(dim))
        assert sigreg(z, axes(dim, 256, seed=1)).item() == pytest.approx(GAUSSIAN_STATISTIC, rel=0.6)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda z: 0 * z,  # all in one point
        lambda z: z[:, :1].expand(-1, 16),  # all on a line
        lambda z: z / 2,
        lambda z: 2 * z,
        lambda z: z + 1,
        lambda z: z.sign(),
    ],
)
def test_sigreg_of_other_embeddings_is_larger_and_grows_with_n(spoilt):
    # In two dimensions signs differ from a Gaussian; in many, projections of them do not.
    dim = 2 if spoilt(torch.ones(1, 2)).abs().max() == 1 else 16
    directions = axes(dim, 64, seed=1)
    few, many = (
        sigreg(spoilt(torch.randn(n, dim, generator=seeded()))[:, :dim], directions).item() for n in (256, 2048)
    )
    assert few > 2 * GAUSSIAN_STATISTIC
    assert many > 4 * few


def test_sigreg_of_one_point_is_n_times_a_constant():
    """φ̂ = 1 for embeddings of zeros: N ∫ (1 - φ)² φ dt."""
    t = torch.linspace(0, LARGEST_T, KNOTS, dtype=torch.float64)
    phi = torch.exp(-t.square() / 2)
    expected = 2 * torch.trapezoid((1 - phi).square() * phi, t).item()
    z = torch.zeros(10, 6, dtype=torch.float64)
    assert sigreg(z, axes(6, 5, seed=1)).item() == pytest.approx(10 * expected, rel=1e-12)


def test_sigreg_does_not_depend_on_the_axes_of_the_embedding():
    z, directions = views(9, 1, 5).detach()[:, 0], axes(5, 7, seed=1)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=seeded(3), dtype=torch.float64)).Q
    torch.testing.assert_close(sigreg(z @ turn, turn.T @ directions), sigreg(z, directions))


def test_descent_on_sigreg_makes_embeddings_gaussian():
    torch.manual_seed(0)
    z = (0.1 * torch.randn(256, 4) + torch.tensor([1.0, 0, 0, 0])).requires_grad_()
    optimizer = torch.optim.Adam([z], 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        sigreg(z, random_directions(4, 64, z.device)).backward()
        optimizer.step()
    assert z.mean(0).abs().max() < 0.1
    torch.testing.assert_close(torch.cov(z.detach().T), torch.eye(4), atol=0.15, rtol=0)


def test_directions_are_uniform_on_the_sphere():
    torch.manual_seed(0)
    a = random_directions(3, 20000, torch.device("cpu"))
    torch.testing.assert_close(a.norm(dim=0), torch.ones(20000))
    torch.testing.assert_close(a @ a.T / 20000, torch.eye(3) / 3, atol=0.01, rtol=0)
    assert a.mean(1).abs().max() < 0.02


def test_prediction_of_equal_views_is_zero():
    z = views(5, 1, 4).detach().expand(-1, 3, -1)
    assert lejepa_terms(z[:, :2], z[:, 2:], axes(4, 3, seed=1))["prediction"].item() == pytest.approx(0, abs=1e-20)


def test_prediction_of_two_views_is_a_quarter_of_their_squared_distance():
    z = views(5, 2, 4).detach()
    expected = (z[:, 0] - z[:, 1]).square().mean().item() / 4
    assert lejepa_terms(z, None, axes(4, 3, seed=1))["prediction"].item() == pytest.approx(expected, rel=1e-12)


# --- DCL ---


def slow_dcl(z0, z1, temperature, sigma=None):
    """Yeh et al. 2022, L_DC and L_DCW with w = 2 - exp(s/σ) / E exp(s/σ), a view at a time, averaged over views."""
    n = len(z0)
    total = 0
    for own, other in ((z0, z1), (z1, z0)):
        for i in range(n):
            weight = 1
            if sigma is not None:
                share = (cosine(z0[i], z1[i]) / sigma).exp() / mean(
                    (cosine(z0[j], z1[j]) / sigma).exp() for j in range(n)
                )
                weight = 2 - share.detach()
            negatives = [
                (cosine(own[i], view[j]) / temperature).exp() for view in (own, other) for j in range(n) if j != i
            ]
            total = total - weight * cosine(own[i], other[i]) / temperature + sum(negatives).log()
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("sigma", [None, 0.5, 2.0])
@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_dcl_is_the_papers_formula(n, dim, sigma, temperature):
    z = pair(n, dim)
    mine = dcl(*z, temperature) if sigma is None else dclw(*z, temperature, sigma)
    slow = slow_dcl(*z, temperature, sigma)
    torch.testing.assert_close(value_and_gradients(mine, *z), value_and_gradients(slow, *z), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize(("n", "dim"), [*SHAPES, (64, 128)])
def test_lightly_agrees_on_dcl(n, dim):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z = pair(n, dim)
    for mine, theirs in ((dcl, lightly.DCLLoss(0.2)), (dclw, lightly.DCLWLoss(0.2, 0.4))):
        options = (0.2,) if mine is dcl else (0.2, 0.4)
        expected = value_and_gradients(theirs(*z), *z)
        torch.testing.assert_close(value_and_gradients(mine(*z, *options), *z), expected, rtol=1e-8, atol=1e-10)


def test_dcl_of_equal_embeddings():
    z = torch.ones(7, 5, dtype=torch.float64)
    assert dcl(z, z, 0.5).item() == pytest.approx(math.log(12), rel=1e-12)
    assert dclw(z, z, 0.5).item() == pytest.approx(math.log(12), rel=1e-12)


def test_dcl_of_orthogonal_images():
    z = torch.eye(5, dtype=torch.float64)
    assert dcl(z, z, 0.25).item() == pytest.approx(math.log(8) - 4, rel=1e-12)


def test_nt_xent_is_dcl_with_the_positive_in_the_denominator():
    """For each view, log(exp(s⁺) + U) - s⁺ = softplus of log U - s⁺."""
    z = [view.detach() for view in pair(6, 4)]
    rows = core.pair_loss(
        lambda logits, partners: torch.nn.functional.softplus(
            logits.scatter(1, partners[:, None], -torch.inf).logsumexp(1) - logits.gather(1, partners[:, None])[:, 0]
        ).mean(),
        *z,
        0.3,
    )
    torch.testing.assert_close(rows, core.nt_xent(*z, 0.3))
    assert dcl(*z, 0.3) < core.nt_xent(*z, 0.3)


def test_dcl_in_blocks_of_rows_is_the_same(monkeypatch):
    z = pair(9, 4)
    whole = [value_and_gradients(loss(*z), *z) for loss in (dcl, dclw)]
    monkeypatch.setattr(core, "BLOCK", 40)
    torch.testing.assert_close([value_and_gradients(loss(*z), *z) for loss in (dcl, dclw)], whole)


def test_weights_of_positive_pairs():
    z0, z1 = (view.detach() for view in pair(9, 4))
    weights = positive_weights(z0, z1, 0.5)
    assert weights.mean().item() == pytest.approx(1, rel=1e-12)
    assert weights.max() < 2
    similarity = torch.cosine_similarity(z0, z1)
    assert torch.equal(weights.argsort(), similarity.argsort(descending=True))
    torch.testing.assert_close(positive_weights(z0, z1, 1e6), torch.ones(9, dtype=torch.float64), atol=1e-5, rtol=0)


# --- all ---


def two(loss):
    """A loss of views [N, V, D] as a loss of two of them."""
    return lambda z0, z1: loss(torch.stack([z0, z1], dim=1))


LOSSES = {
    "empssl": two(empssl),
    "lejepa": two(partial(lejepa, local_z=None, directions=axes(6, 5, seed=2))),
    "dcl": dcl,
    "dclw": dclw,
}


@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("name", ["empssl", "lejepa", "dcl"])
def test_gradients_agree_with_differences(name, n):
    assert torch.autograd.gradcheck(LOSSES[name], pair(n, 6))


@pytest.mark.parametrize("name", LOSSES)
def test_views_may_be_swapped_and_images_permuted(name):
    z0, z1 = pair(9, 6)
    order = torch.randperm(9, generator=seeded())
    torch.testing.assert_close(LOSSES[name](z1, z0), LOSSES[name](z0, z1))
    torch.testing.assert_close(LOSSES[name](z0[order], z1[order]), LOSSES[name](z0, z1))


@pytest.mark.parametrize("n", [4, 32])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast_and_for_half_inputs(name, n):
    check_precision(LOSSES[name], *pair(n, 6))


@pytest.mark.parametrize("name", LOSSES)
def test_collapsed_embeddings_give_finite_values_and_gradients(name):
    z0 = torch.zeros(6, 6, requires_grad=True)
    value = LOSSES[name](z0, torch.zeros(6, 6))
    value.backward()
    assert value.isfinite()
    assert z0.grad.isfinite().all()


@pytest.mark.parametrize("shapes", [[(4, 3), (5, 3)], [(4,), (4,)], [(1, 3), (1, 3)]])
@pytest.mark.parametrize("loss", [dcl, dclw])
def test_shapes_that_do_not_pair_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="one shape"):
        loss(*map(torch.zeros, shapes))


def test_embeddings_that_are_not_by_image_are_refused():
    with pytest.raises(ValueError, match=r"\[N, V, D\]"):
        empssl(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"\[N, V, K\]"):
        lejepa(torch.zeros(4, 3), None, torch.zeros(3, 2))
