"""SimSiam and NNCLR against their papers' formulas as slow loops, against lightly, and at closed forms."""

import math

import pytest
import torch
from sslkit_siamese.losses import nearest, negative_cosine, neighbour_logits, nnclr
from sslkit_siamese.nnclr import NNCLR
from sslkit_siamese.simsiam import SimSiam
from torch.nn import functional as F

from sslkit import plugins
from sslkit.errors import UserError
from sslkit.machine.distributed import gather
from sslkit.methods import Batch, RunInfo
from sslkit.nn.momentum import momentum_encoder
from sslkit.testing import TinyBackbone, check_method, check_precision, in_two_processes, steps_on

LOSSES = [negative_cosine, nnclr]
SMALL = {
    SimSiam: {"hidden": 32, "dim": 16, "bottleneck": 8},
    NNCLR: {"hidden": 32, "dim": 8, "predictor_hidden": 16, "queue": 20},
}


def embeddings(n, dim, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(count)]


def value_and_gradients(loss, inputs):
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def slow_negative_cosine(p, z):
    """Chen and He 2021, Eq. 1, a row at a time."""
    cosines = [(a @ b) / (a.norm() * b.norm()) for a, b in zip(p, z.detach())]
    return -sum(cosines) / len(cosines)


def slow_nnclr(neighbours, p, tau):
    """Dwibedi et al. 2021, Section 3.2, an image at a time."""
    n = [row / row.norm() for row in neighbours.detach()]
    z = [row / row.norm() for row in p]
    total = 0
    for i in range(len(n)):
        terms = [torch.exp(n[i] @ other / tau) for other in z]
        total = total - torch.log(terms[i] / sum(terms))
    return total / len(n)


@pytest.mark.parametrize(("n", "dim"), [(2, 8), (7, 8), (7, 128)])
def test_negative_cosine_is_equation_1(n, dim):
    p, z = embeddings(n, dim)
    mine = value_and_gradients(negative_cosine(p, z), [p])
    torch.testing.assert_close(mine, value_and_gradients(slow_negative_cosine(p, z), [p]), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize(("n", "dim"), [(2, 8), (7, 8), (7, 128)])
def test_nnclr_is_the_paper_s_loss(n, dim, tau):
    neighbours, p = embeddings(n, dim)
    mine = value_and_gradients(nnclr(neighbours, p, tau), [p])
    torch.testing.assert_close(mine, value_and_gradients(slow_nnclr(neighbours, p, tau), [p]), rtol=1e-10, atol=1e-13)


def test_gradients_agree_with_differences():
    p, z = embeddings(5, 4)
    assert torch.autograd.gradcheck(lambda a: negative_cosine(a, z), [p])
    assert torch.autograd.gradcheck(lambda a: nnclr(z, a, 0.3), [p])


def test_no_gradient_flows_into_targets_and_neighbours():
    p, z = embeddings(4, 3)
    (negative_cosine(p, z) + nnclr(z, p)).backward()
    assert p.grad is not None
    assert z.grad is None


@pytest.mark.parametrize(("n", "dim"), [(2, 8), (64, 128)])
def test_lightly_agrees(n, dim):
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    p, z = embeddings(n, dim)
    theirs = value_and_gradients(lightly.NegativeCosineSimilarity()(p, z.detach()), [p])
    torch.testing.assert_close(value_and_gradients(negative_cosine(p, z), [p]), theirs, rtol=1e-8, atol=1e-10)


def test_lightly_finds_the_same_neighbours():
    modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed")
    bank = modules.NNMemoryBankModule(size=(50, 8))
    z, support = torch.randn(30, 8), bank.bank.clone()
    torch.testing.assert_close(support[nearest(z, support)], bank(z))


def test_nearest_is_the_smallest_distance():
    z, support = torch.randn(30, 4), F.normalize(torch.randn(50, 4), dim=1)
    distances = torch.cdist(F.normalize(z, dim=1), support)
    assert torch.equal(nearest(z, support), distances.argmin(1))
    assert torch.equal(nearest(support, support), torch.arange(50))


def test_nearest_is_exact_under_autocast():
    z, support = torch.randn(200, 8), F.normalize(torch.randn(2000, 8), dim=1)
    exact = (z @ support.T).argmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(z, support), exact)


@pytest.mark.parametrize("n", [2, 8, 100])
def test_nnclr_of_equal_embeddings(n):
    z = torch.randn(1, 16, dtype=torch.float64).expand(n, -1)
    assert nnclr(z, z).item() == pytest.approx(math.log(n), rel=1e-12)


def test_nnclr_of_perfect_pairs():
    z = torch.eye(8, dtype=torch.float64)
    assert nnclr(z, 3 * z, 0.1).item() == pytest.approx(math.log(1 + 7 * math.exp(-10)), rel=1e-9)


def test_negative_cosine_between_minus_1_and_1():
    p = embeddings(6, 5)[0]
    assert negative_cosine(p, 7 * p).item() == pytest.approx(-1, rel=1e-12)
    assert negative_cosine(p, -2 * p).item() == pytest.approx(1, rel=1e-12)
    a, b = torch.eye(2, dtype=torch.float64)
    assert negative_cosine(a[None], b[None]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_scale_does_not_matter(loss):
    a, b = embeddings(6, 5)
    scale = torch.rand(6, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(loss(scale * a, 5 * b), loss(a, b))


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_under_autocast_and_for_half_inputs(loss):
    check_precision(loss, *embeddings(16, 32))


@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_that_do_not_pair_are_refused(loss):
    for shapes in ([(4, 3), (5, 3)], [(4,), (4,)]):
        with pytest.raises(ValueError, match="one shape"):
            loss(*map(torch.zeros, shapes))


# --- the methods ---


def make(method_class, **options):
    torch.manual_seed(0)
    return method_class(method_class.Config(**SMALL[method_class] | options), TinyBackbone(), RunInfo(100, 0, 32))


def batch(views=2, images=6):
    generator = torch.Generator().manual_seed(1)
    return Batch([torch.randn(views * images, 3, 32, 32, generator=generator)], torch.arange(images))


def kinds(module):
    return [type(layer).__name__ for layer in module]


def widths(module):
    return [layer.out_features for layer in module if hasattr(layer, "out_features")]


def own_pass(method, views):
    """Projections and predictions of each view, passed through the network on its own."""
    reference = momentum_encoder(method)
    z = [reference.projector(reference.backbone(view)) for view in views.views.chunk(views.n_views)]
    return z, [reference.predictor(projection) for projection in z]


@pytest.mark.parametrize("method_class", SMALL)
def test_contract(method_class):
    check_method(method_class, **SMALL[method_class])


@pytest.mark.parametrize(("name", "method_class"), [("simsiam", SimSiam), ("nnclr", NNCLR)])
def test_registered(name, method_class):
    assert plugins.find("methods", name) is method_class


def test_simsiam_is_the_mean_of_both_directions_with_a_pass_a_view():
    method, views = make(SimSiam), batch()
    (z0, z1), (p0, p1) = own_pass(method, views)
    out = method(views)
    torch.testing.assert_close(out["loss"].detach(), (negative_cosine(p0, z1) + negative_cosine(p1, z0)) / 2)
    assert 0 < out["output_std"] <= 1.01


def test_simsiam_with_more_views_keeps_its_scale():
    method, two = make(SimSiam), batch()
    same = Batch([two.views.chunk(2)[0].repeat(4, 1, 1, 1)], two.indices)
    (z, *_), (p, *_) = own_pass(method, same)
    assert same.n_views == 4
    torch.testing.assert_close(method(same)["loss"].detach(), negative_cosine(p, z))


def test_simsiam_learns_through_the_predictor_alone():
    method = make(SimSiam)
    torch.nn.init.zeros_(method.predictor[3].weight)
    method(batch())["loss"].backward()
    assert not any(p.grad.any() for p in method.projector.parameters())
    assert method.predictor[3].weight.grad.any()


def test_simsiam_networks():
    method = SimSiam(SimSiam.Config(), TinyBackbone(), RunInfo(100, 0, 32))
    assert kinds(method.projector) == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear", "BatchNorm1d"]
    assert widths(method.projector) == [2048, 2048, 2048]
    assert not list(method.projector[7].parameters())
    assert method.projector[6].bias is None
    assert kinds(method.predictor) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert widths(method.predictor) == [512, 2048]
    assert method.predictor[3].bias is not None
    assert widths(make(SimSiam, layers=2).projector) == [32, 16]
    assert hasattr(method, *SimSiam.constant_lr)


def test_nnclr_is_algorithm_1():
    method, views = make(NNCLR, temperature=0.2), batch()
    (z0, z1), (p0, p1) = own_pass(method, views)
    support = method.queue.rows.clone()
    n0, n1 = (support[nearest(z, support)] for z in (z0, z1))
    out = method(views)
    torch.testing.assert_close(out["loss"].detach(), (nnclr(n0, p1, 0.2) + nnclr(n1, p0, 0.2)) / 2)
    torch.testing.assert_close(out["neighbour_similarity"], torch.cosine_similarity(z0, n0).mean())
    accuracy = neighbour_logits(n0, p1, 0.2).argmax(1) == torch.arange(6)
    assert out["contrastive_accuracy"] == accuracy.float().mean()
    assert torch.equal(method.queue.rows, support)


def test_nnclr_networks():
    method = NNCLR(NNCLR.Config(queue=8), TinyBackbone(), RunInfo(100, 0, 32))
    assert kinds(method.projector) == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear", "BatchNorm1d"]
    assert widths(method.projector) == [2048, 2048, 256]
    assert method.projector[7].affine
    assert kinds(method.predictor) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert widths(method.predictor) == [4096, 256]
    assert NNCLR.Config().queue == 98304


def test_nnclr_s_queue_takes_in_the_first_view_of_every_call_of_a_step():
    method, first, second = make(NNCLR), batch(), batch(images=4)
    rows = torch.cat([own_pass(method, views)[0][0] for views in (first, second)])
    for views in (first, second):
        method(views)
    assert method.queue.pushed == 0
    method.after_step(0.5)
    assert method.queue.pushed == 10
    torch.testing.assert_close(method.queue.rows[:10], F.normalize(rows, dim=1))
    method(first)
    method.after_step(0.6)
    assert method.queue.pushed == 16


def test_nnclr_tells_how_its_neighbours_fare():
    method = make(NNCLR)
    with torch.no_grad():
        method.queue.rows.copy_(F.normalize(torch.eye(8).repeat(3, 1)[:20] + 1e-3 * torch.randn(20, 8), dim=1))
    same = torch.eye(8)[[0, 1, 2, 3]]
    apart = method.loss({"z": torch.stack([same, same.roll(1, 0)], 1), "p": torch.randn(4, 2, 8)})
    assert apart["neighbour_agreement"] == 0
    assert apart["neighbours_distinct"] == 1
    assert apart["neighbour_similarity"] > 0.99
    collapsed = method.loss({"z": torch.stack([same[:1].expand(4, 8), same], 1), "p": torch.randn(4, 2, 8)})
    assert collapsed["neighbour_agreement"] == 0.25
    assert collapsed["neighbours_distinct"] == 0.25


@pytest.mark.parametrize(("method_class", "views"), [(SimSiam, 1), (NNCLR, 1), (NNCLR, 3)])
def test_wrong_number_of_views_is_the_users_mistake(method_class, views):
    with pytest.raises(UserError, match=r"augment\.views=2"):
        make(method_class)(batch(views))


@pytest.mark.parametrize("method_class", SMALL)
def test_training_brings_the_loss_down(method_class):
    method, views = make(method_class), batch(images=16)
    images = views.views.chunk(2)[0]
    views.crops[0] = torch.cat([images, images + 0.3 * torch.randn_like(images)])
    first, out = steps_on(views, method, torch.optim.SGD(method.parameters(), 0.05, momentum=0.9), 40)
    assert out["loss"] < first["loss"] - 0.5
    if method_class is NNCLR:
        assert out["contrastive_accuracy"] > 0.9


# --- several processes ---


def queue_meets_batch():
    """NNCLR in float64 and what it made of a batch of 8."""
    z0, z1, p0, p1 = (rows.detach() for rows in embeddings(8, 8, count=4))
    return make(NNCLR).double(), {"z": torch.stack([z0, z1], 1), "p": torch.stack([p0, p1], 1)}


def one_of_two(rank):
    alone, rows = queue_meets_batch()
    shared, _ = queue_meets_batch()
    whole = rows["p"].clone().requires_grad_()
    expected = alone.loss({"z": rows["z"], "p": whole})
    expected["loss"].backward()
    mine = rows["p"].chunk(2)[rank].clone().requires_grad_()
    out = shared.loss({"z": gather(rows["z"].chunk(2)[rank]), "p": gather(mine)})
    out["loss"].backward()
    torch.testing.assert_close(out, expected)
    # The mean over the two processes of what reaches the parameters.
    torch.testing.assert_close(mine.grad / 2, whole.grad.chunk(2)[rank])
    for method in (alone, shared):
        method.after_step(0.5)
    torch.testing.assert_close(shared.queue.state_dict(), alone.queue.state_dict())


def test_two_processes_have_the_loss_the_gradient_and_the_queue_of_one():
    in_two_processes(one_of_two)
