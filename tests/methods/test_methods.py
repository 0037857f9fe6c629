"""SimCLR and BYOL against their papers, and the modules that methods share."""

import math

import pytest
import torch
from torch import Tensor, nn

from sslkit.errors import UserError
from sslkit.methods import BYOL, Batch, Method, MoCoV2, RunInfo, SimCLR
from sslkit.nn import losses
from sslkit.nn.heads import ACTIVATIONS, mlp
from sslkit.nn.momentum import cosine_momentum, ema_update, momentum_encoder
from sslkit.testing import TinyBackbone, steps_on

INFO = RunInfo(images=100, classes=0, image_size=16)


def make(method_class: type[Method], **options: object) -> Method:
    torch.manual_seed(0)
    return method_class(method_class.Config(**options), TinyBackbone(), INFO)


def batch(views: int = 2, images: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch([torch.randn(views * images, 3, 32, 32, generator=generator)], torch.arange(images))


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module]


# --- SimCLR ---


def test_simclr_is_one_pass_head_and_nt_xent():
    method, views = make(SimCLR, temperature=0.2), batch()
    reference = momentum_encoder(method)
    out = method(views)
    z = reference.head(reference.backbone(views.views))
    torch.testing.assert_close(out["loss"].detach(), losses.nt_xent(z[:6], z[6:], 0.2))
    assert 0 <= out["contrastive_accuracy"] <= 1
    assert 0 <= out["contrastive_entropy"] <= math.log(11) + 1e-6


def test_simclr_head():
    head = make(SimCLR).head
    assert kinds(head) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert (head[0].out_features, head[3].out_features) == (TinyBackbone.width, 128)
    assert head[0].bias is None
    assert head[3].bias is None
    assert not head[4].bias.requires_grad
    assert kinds(make(SimCLR, norm=False, hidden=7).head) == ["Linear", "ReLU", "Linear"]


def test_simclr_learns_to_tell_a_batch_apart():
    method, views = make(SimCLR, temperature=0.2), batch()
    images = views.views.chunk(2)[0]
    views.crops[0] = torch.cat([images, images + 1.5 * torch.randn_like(images)])
    first, out = steps_on(views, method, torch.optim.SGD(method.parameters(), 0.2), 20)
    assert out["loss"] < first["loss"] / 2
    assert out["contrastive_accuracy"] == 1


@pytest.mark.parametrize(("method_class", "views"), [(SimCLR, 1), (SimCLR, 3), (BYOL, 1), (MoCoV2, 1), (MoCoV2, 3)])
def test_wrong_number_of_views_is_the_users_mistake(method_class, views):
    with pytest.raises(UserError, match=r"augment\.views=2"):
        make(method_class)(batch(views))


# --- BYOL ---


def test_byol_is_the_sum_of_both_directions_with_a_pass_a_view():
    method, views = make(BYOL, hidden=32, dim=8), batch()
    with torch.no_grad():
        for p in method.target.parameters():
            p.add_(0.1 * torch.randn_like(p))
    reference = momentum_encoder(method)
    out = method(views)

    x0, x1 = views.views.chunk(2)
    q0, q1 = (reference.predictor(reference.projector(reference.backbone(x))) for x in (x0, x1))
    z0, z1 = (reference.target(x) for x in (x0, x1))
    torch.testing.assert_close(out["loss"].detach(), losses.byol(q0, z1) + losses.byol(q1, z0))
    for mine, theirs in zip(method.buffers(), reference.buffers()):
        torch.testing.assert_close(mine, theirs)
    assert 0 <= out["target_std"] <= 1.1


def test_byol_views_may_pass_as_one_batch():
    method, views = make(BYOL, hidden=32, dim=8, joint_views=True), batch()
    reference = momentum_encoder(method)
    q = reference.predictor(reference.projector(reference.backbone(views.views)))
    z = reference.target(views.views)
    expected = losses.byol(q[:6], z[6:]) + losses.byol(q[6:], z[:6])
    torch.testing.assert_close(method(views)["loss"].detach(), expected)


def test_byol_with_more_views_keeps_its_scale():
    method = make(BYOL, hidden=32, dim=8)
    two = batch(2)
    doubled = Batch([torch.cat([two.views, two.views])], two.indices)
    assert doubled.n_views == 4
    assert 0 < method(doubled)["loss"] < 8


def test_byol_networks():
    method = make(BYOL)
    assert kinds(method.projector) == kinds(method.predictor) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert (method.projector[0].out_features, method.projector[3].out_features) == (4096, 256)
    assert (method.predictor[0].in_features, method.predictor[0].out_features) == (256, 4096)
    assert method.projector[3].bias is None
    assert not any(p.requires_grad for p in method.target.parameters())
    assert sum(m is method.backbone for _, m in method.named_modules(remove_duplicate=False)) == 1


def test_byol_trains_the_online_network_alone_and_moves_the_target_after():
    method = make(BYOL, hidden=32, dim=8, momentum=0.9)
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    start = [p.detach().clone() for p in method.target.parameters()]
    method(batch())["loss"].backward()
    assert all(p.grad is None for p in method.target.parameters())
    with torch.no_grad():
        for p in online:
            p.add_(1)
    method.after_step(0.5)
    momentum = 1 - 0.1 * 0.5
    for slow, before, fast in zip(method.target.parameters(), start, online):
        torch.testing.assert_close(slow, momentum * before + (1 - momentum) * fast.detach())


# --- modules ---


def test_mlp_shapes_and_options():
    assert kinds(mlp(4)) == []
    assert kinds(mlp(4, 2)) == ["Linear"]
    assert kinds(mlp(4, 3, 2)) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    mobile = mlp(4, 3, 3, 2, norm=False, activation=nn.Hardswish, dropout=0.2)
    assert kinds(mobile) == [*["Linear", "Hardswish", "Dropout"] * 2, "Linear"]
    assert mobile[0].bias is not None
    assert mlp(4, 3, 2, last_bias=False)[3].bias is None
    assert mlp(5, 3, 2)(torch.randn(4, 5)).shape == (4, 2)


def test_activations_have_names():
    assert {name: type(make()) for name, make in ACTIVATIONS.items()} == {"relu": nn.ReLU, "hardswish": nn.Hardswish}


def test_a_momentum_encoder_shares_nothing_and_takes_no_gradient():
    net = TinyBackbone().train()
    copy = momentum_encoder(net)
    assert copy.training
    assert copy.width == net.width
    ours = {t.data_ptr() for t in net.state_dict().values()}
    assert not ours & {t.data_ptr() for t in copy.state_dict().values()}
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_ema_after_k_steps():
    slow, fast = TinyBackbone().double(), TinyBackbone().double()
    start = [p.detach().clone() for p in slow.parameters()]
    for _ in range(7):
        ema_update(slow, fast, 0.9)
    for now, before, goal in zip(slow.parameters(), start, fast.parameters()):
        torch.testing.assert_close(now.detach(), 0.9**7 * before + (1 - 0.9**7) * goal.detach())


@pytest.mark.parametrize(("momentum", "follows"), [(1.0, "slow"), (0.0, "fast")])
def test_ema_at_its_ends(momentum, follows):
    slow, fast = TinyBackbone(), TinyBackbone()
    goal = momentum_encoder({"slow": slow, "fast": fast}[follows])
    ema_update(slow, fast, momentum)
    assert all(torch.equal(a, b) for a, b in zip(slow.parameters(), goal.parameters()))


def test_ema_leaves_batch_norm_statistics_to_the_slow_network():
    slow, fast = TinyBackbone(), TinyBackbone()
    fast(torch.randn(4, 3, 16, 16) + 5)
    before = [b.clone() for b in slow.buffers()]
    ema_update(slow, fast, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(slow.buffers(), before))


def test_momentum_schedule():
    assert cosine_momentum(0.996, 0) == pytest.approx(0.996)
    assert cosine_momentum(0.996, 0.5) == pytest.approx(0.998)
    assert cosine_momentum(0.996, 1) == 1


def test_batch_counts_its_views():
    views: Tensor = batch(views=3).views
    assert batch(views=3).n_views == 3
    assert views.shape == (18, 3, 32, 32)
