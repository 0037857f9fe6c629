"""Barlow Twins and VICReg against their papers' formulas as slow loops, against lightly, and at closed forms."""

import math

import pytest
import torch
from sslkit_redundancy.barlowtwins import BarlowTwins
from sslkit_redundancy.losses import barlow_twins, cross_correlation, vicreg, vicreg_terms
from sslkit_redundancy.vicreg import VICReg

from sslkit import plugins
from sslkit.errors import UserError
from sslkit.machine.distributed import gather
from sslkit.methods import Batch, RunInfo
from sslkit.nn.momentum import momentum_encoder
from sslkit.testing import TinyBackbone, check_method, check_precision, in_two_processes, steps_on

# More images than features and fewer: the sums over the matrices differ.
SHAPES = [(2, 8), (7, 8), (8, 8), (12, 5), (9, 1)]
LOSSES = [barlow_twins, vicreg]
METHODS = [BarlowTwins, VICReg]
SMALL = {"hidden": 32, "dim": 8}


def embeddings(n, dim, seed=0):
    """Two related views, the features of different scales and not centred."""
    generator = torch.Generator().manual_seed(seed)
    image, *noise = torch.randn(3, n, dim, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.3, 2, dim, dtype=torch.float64)
    return [(scale * (image + 0.5 * each) + 1).requires_grad_() for each in noise]


def value_and_gradients(loss, inputs):
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def mean(values):
    return sum(values) / len(values)


def slow_barlow_twins(z0, z1, weight):
    """Zbontar et al. 2021, Eqs. 1 and 2, a pair of features at a time, with the official code's batch norm."""

    def normalised(column):
        centred = [x - mean(column) for x in column]
        std = (mean([x * x for x in centred]) + 1e-5).sqrt()
        return [x / std for x in centred]

    a, b = ([normalised(list(z[:, i])) for i in range(z.shape[1])] for z in (z0, z1))
    total = 0
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            c = mean([x * y for x, y in zip(first, second)])
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


def slow_vicreg(z0, z1, lambda_, mu, nu, gamma, eps):
    """Bardes et al. 2022, Eqs. 1 to 6, a number at a time; s over d and v over 2, as in the official code."""
    n, d = z0.shape

    def covariance(z, i, j):
        mean_i, mean_j = mean(list(z[:, i])), mean(list(z[:, j]))
        return sum((z[k, i] - mean_i) * (z[k, j] - mean_j) for k in range(n)) / (n - 1)

    def v(z):
        return mean([torch.relu(gamma - (covariance(z, j, j) + eps).sqrt()) for j in range(d)])

    def c(z):
        return sum(covariance(z, i, j) ** 2 for i in range(d) for j in range(d) if i != j) / d

    s = mean([((z0[k] - z1[k]) ** 2).sum() for k in range(n)])
    return lambda_ * s / d + mu * (v(z0) + v(z1)) / 2 + nu * (c(z0) + c(z1))


@pytest.mark.parametrize("weight", [0.005, 0.7])
@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_barlow_twins_is_equation_1(n, dim, weight):
    z = embeddings(n, dim)
    mine = value_and_gradients(barlow_twins(*z, weight), z)
    torch.testing.assert_close(mine, value_and_gradients(slow_barlow_twins(*z, weight), z), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", [(25.0, 25.0, 1.0, 1.0, 1e-4), (2.0, 3.0, 5.0, 1.5, 1e-2)])
@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_vicreg_is_equation_6(n, dim, settings):
    z = embeddings(n, dim)
    mine = value_and_gradients(vicreg(*z, *settings), z)
    torch.testing.assert_close(mine, value_and_gradients(slow_vicreg(*z, *settings), z), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "dim"), [(4, 6), (6, 3)])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_differences(loss, n, dim):
    assert torch.autograd.gradcheck(loss, embeddings(n, dim))


@pytest.mark.parametrize(("n", "dim"), [*SHAPES, (64, 128)])
def test_lightly_agrees(n, dim):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z = embeddings(n, dim)
    for mine, theirs in ((barlow_twins, lightly.BarlowTwinsLoss()), (vicreg, lightly.VICRegLoss())):
        expected = value_and_gradients(theirs(*z), z)
        torch.testing.assert_close(value_and_gradients(mine(*z), z), expected, rtol=1e-8, atol=1e-10)


def walsh(n, dim):
    """[n, dim] of ±1: centred, uncorrelated columns of variance 1. n is a power of two above dim."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix[:, 1 : dim + 1]


def test_barlow_twins_of_white_views():
    z = walsh(16, 5)
    # The batch norm's epsilon leaves a correlation of 1 - 1e-5 with itself.
    assert barlow_twins(z, 7 * z + 2).item() == pytest.approx(0, abs=1e-8)
    assert barlow_twins(z, -z).item() == pytest.approx(4 * 5, rel=1e-4)


def test_barlow_twins_of_a_repeated_feature():
    for n, dim in ((16, 5), (4, 6)):
        z = walsh(n, 1).expand(-1, dim)
        assert barlow_twins(z, z, 0.3).item() == pytest.approx(0.3 * dim * (dim - 1), rel=1e-4)


def test_correlations_of_independent_views():
    diagonal, off_diagonal = cross_correlation(walsh(16, 4), walsh(16, 8)[:, 4:])
    torch.testing.assert_close(diagonal, torch.zeros(4, dtype=torch.float64))
    assert off_diagonal.item() == 0


def test_vicreg_of_one_point():
    point = torch.randn(1, 6, dtype=torch.float64).expand(10, -1)
    terms = vicreg_terms(point, point + 2, gamma=1.5, eps=1e-4)
    assert terms["variance"].item() == pytest.approx(1.5 - 0.01, rel=1e-9)
    assert terms["covariance"].item() == pytest.approx(0, abs=1e-20)
    assert terms["invariance"].item() == pytest.approx(4, rel=1e-12)
    assert vicreg(point, point).item() == pytest.approx(25 * 0.99, rel=1e-9)


def test_vicreg_of_wide_white_views():
    z = walsh(16, 5)
    assert vicreg(z, z).item() == pytest.approx(0, abs=1e-12)
    half = vicreg_terms(z / 2, z / 2, eps=1e-12)["variance"].item()
    assert half == pytest.approx(1 - math.sqrt(16 / 15) / 2, rel=1e-9)


def test_vicreg_of_a_repeated_feature():
    z = walsh(16, 1).expand(-1, 4)
    variance = 16 / 15
    assert vicreg_terms(z, z)["covariance"].item() == pytest.approx(2 * 4 * 3 * variance**2 / 4, rel=1e-9)


def test_barlow_twins_knows_no_scale_and_no_shift():
    z0, z1 = embeddings(9, 4)
    scale = torch.tensor([300.0, 50, 200, 100], dtype=torch.float64)
    # Wide features, for which the epsilon is nothing.
    torch.testing.assert_close(
        barlow_twins(scale * z0 + 3, 100 * z1), barlow_twins(100 * z0, 100 * z1), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_views_may_be_swapped_and_images_permuted(loss):
    z0, z1 = embeddings(9, 5)
    order = torch.randperm(9)
    torch.testing.assert_close(loss(z1, z0), loss(z0, z1))
    torch.testing.assert_close(loss(z0[order], z1[order]), loss(z0, z1))


@pytest.mark.parametrize(("n", "dim"), [(16, 32), (32, 16)])
@pytest.mark.parametrize("loss", LOSSES)
def test_float32_under_autocast_and_for_half_inputs(loss, n, dim):
    check_precision(loss, *embeddings(n, dim))


@pytest.mark.parametrize("loss", LOSSES)
def test_collapsed_features_give_finite_values_and_gradients(loss):
    z0 = torch.zeros(6, 4, requires_grad=True)
    value = loss(z0, torch.zeros(6, 4))
    value.backward()
    assert value.isfinite()
    assert z0.grad.isfinite().all()


@pytest.mark.parametrize("shapes", [[(4, 3), (5, 3)], [(4,), (4,)], [(1, 3), (1, 3)]])
@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_that_do_not_pair_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="one shape"):
        loss(*map(torch.zeros, shapes))


# --- the methods ---


def make(method_class, **options):
    torch.manual_seed(0)
    return method_class(method_class.Config(**SMALL | options), TinyBackbone(), RunInfo(100, 0, 32))


def batch(views=2, images=6):
    generator = torch.Generator().manual_seed(1)
    return Batch([torch.randn(views * images, 3, 32, 32, generator=generator)], torch.arange(images))


def head(method):
    return method.projector if isinstance(method, BarlowTwins) else method.expander


def own_pass(method, views):
    """Embeddings of each view, passed through the network on its own."""
    reference = momentum_encoder(method)
    return [head(reference)(reference.backbone(view)) for view in views.views.chunk(2)]


@pytest.mark.parametrize("method_class", METHODS)
def test_contract(method_class):
    check_method(method_class, **SMALL)


@pytest.mark.parametrize(("name", "method_class"), [("barlowtwins", BarlowTwins), ("vicreg", VICReg)])
def test_registered(name, method_class):
    assert plugins.find("methods", name) is method_class


@pytest.mark.parametrize("method_class", METHODS)
def test_head_is_the_official_one(method_class):
    torch.manual_seed(0)
    with torch.device("meta"):
        layers = head(method_class(method_class.Config(), TinyBackbone(), RunInfo(100, 0, 32)))
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    assert [layer.out_features for layer in layers if hasattr(layer, "out_features")] == [8192, 8192, 8192]
    assert layers[6].bias is None


def test_barlow_twins_is_its_loss_of_each_view_s_own_pass():
    method, views = make(BarlowTwins, redundancy_weight=0.3), batch()
    z = own_pass(method, views)
    out = method(views)
    torch.testing.assert_close(out["loss"].detach(), barlow_twins(*z, 0.3))
    diagonal, off_diagonal = cross_correlation(*z)
    torch.testing.assert_close(out["on_diagonal"], diagonal.mean())
    torch.testing.assert_close(out["off_diagonal"], (off_diagonal / 56).sqrt())
    assert 0 < out["embedding_std"] <= 1.01


def test_vicreg_is_its_loss_of_each_view_s_own_pass():
    settings = {"invariance_weight": 2.0, "variance_weight": 3.0, "covariance_weight": 5.0, "gamma": 1.5, "eps": 0.01}
    method, views = make(VICReg, **settings), batch()
    z = own_pass(method, views)
    out = method(views)
    torch.testing.assert_close(out.pop("loss").detach(), vicreg(*z, **settings))
    torch.testing.assert_close(out, vicreg_terms(*z, 1.5, 0.01))


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("method_class", METHODS)
def test_wrong_number_of_views_is_the_users_mistake(method_class, views):
    with pytest.raises(UserError, match=r"augment\.views=2"):
        make(method_class)(batch(views))


@pytest.mark.parametrize("method_class", METHODS)
def test_training_makes_views_agree_and_features_differ(method_class):
    method, views = make(method_class), batch(images=32)
    images = views.views.chunk(2)[0]
    views.crops[0] = torch.cat([images, images + 0.3 * torch.randn_like(images)])
    first, out = steps_on(views, method, torch.optim.Adam(method.parameters(), 3e-3), 40)
    assert out["loss"].item() < first["loss"].item() / 2
    if method_class is BarlowTwins:
        assert out["on_diagonal"] > first["on_diagonal"]
    else:
        assert out["variance"] < first["variance"]


# --- several processes ---


def rows(method_class):
    """The method, and what it made of a batch, in float64."""
    return make(method_class).double(), torch.stack(embeddings(8, 8), dim=1).detach()


def agrees_with_one(rank, method_class):
    method, z = rows(method_class)
    whole = z.clone().requires_grad_()
    alone = method.loss({"z": whole})
    alone["loss"].backward()
    mine = z.chunk(2)[rank].clone().requires_grad_()
    out = method.loss({"z": gather(mine)})
    out["loss"].backward()
    torch.testing.assert_close(out, alone)
    # The mean over the two processes of what reaches the parameters.
    torch.testing.assert_close(mine.grad / 2, whole.grad.chunk(2)[rank])


def one_of_two(rank):
    for method_class in METHODS:
        agrees_with_one(rank, method_class)


def test_two_processes_have_the_loss_and_gradient_of_one():
    in_two_processes(one_of_two)
