"""What the SimCLR paper studies, as options of the method: losses, normalisation, heads."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sslkit.config.resolve import resolve
from sslkit.errors import UserError
from sslkit.methods import Batch, RunInfo, SimCLR
from sslkit.nn import losses
from sslkit.nn.momentum import momentum_encoder
from sslkit.testing import TinyBackbone, check_method, steps_on

LOSSES = {
    "nt_xent": ({"temperature": 0.2}, lambda *z: losses.nt_xent(*z, 0.2)),
    "one view": ({"temperature": 0.2, "both_views": False}, lambda *z: losses.nt_xent(*z, 0.2, both_views=False)),
    "dot product": ({"temperature": 2.0, "normalize": False}, lambda *z: losses.nt_xent(*z, 2.0, normalize=False)),
    "nt_logistic": ({"loss": "nt_logistic", "temperature": 0.2}, lambda *z: losses.nt_logistic(*z, 0.2)),
    "nt_logistic (sh)": (
        {"loss": "nt_logistic", "temperature": 0.2, "semi_hard": True, "both_views": False},
        lambda *z: losses.nt_logistic(*z, 0.2, semi_hard=True, both_views=False),
    ),
    "margin": ({"loss": "margin", "margin": 0.8}, lambda *z: losses.margin(*z, 0.8)),
    "margin (sh)": (
        {"loss": "margin", "margin": 0.8, "semi_hard": True, "normalize": False},
        lambda *z: losses.margin(*z, 0.8, semi_hard=True, normalize=False),
    ),
}
HEADS = {
    "mlp": ({}, ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]),
    "linear": ({"head": "linear"}, ["Linear", "BatchNorm1d"]),
    "linear without norm": ({"head": "linear", "norm": False}, ["Linear"]),
    "identity": ({"head": "identity"}, []),
    "MobileNetV3's": (
        {"norm": False, "activation": "hardswish", "dropout": 0.2},
        ["Linear", "Hardswish", "Dropout", "Linear"],
    ),
}


def make(**options: object) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(SimCLR.Config(**options), TinyBackbone(), RunInfo(images=100, classes=0, image_size=32))


def batch(images: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch([torch.randn(2 * images, 3, 32, 32, generator=generator)], torch.arange(images))


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_the_function_of_its_name(name):
    options, function = LOSSES[name]
    method, views = make(**options), batch()
    z0, z1 = momentum_encoder(method).embed(views)["z"].unbind(1)
    out = method(views)
    torch.testing.assert_close(out["loss"].detach(), function(z0, z1))
    assert out.keys() == {
        "loss",
        "contrastive_accuracy",
        "contrastive_entropy",
        "positive_similarity",
        "negative_similarity",
    }


@pytest.mark.parametrize("options", [{}, {"loss": "margin"}, {"normalize": False}])
def test_similarities_are_logged_before_the_temperature(options):
    method, views = make(temperature=0.1, **options), batch()
    z0, z1 = method.embed(views)["z"].detach().unbind(1)
    if method.config.normalize:
        z0, z1 = (nn.functional.normalize(z, dim=1) for z in (z0, z1))
    assert method(views)["positive_similarity"].item() == pytest.approx((z0 * z1).sum(1).mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_heads(name):
    options, layers = HEADS[name]
    method = make(**options)
    assert [type(layer).__name__ for layer in method.head] == layers
    width = TinyBackbone.width if name == "identity" else 128
    assert method.embed(batch())["z"].shape == (6, 2, width)


def test_widths_and_dropout_of_the_head():
    head = make(hidden=7, dim=5, dropout=0.3).head
    assert (head[0].out_features, head[4].in_features, head[4].out_features) == (7, 7, 5)
    assert head[3].p == 0.3


def test_embeddings_follow_their_images():
    method = make().eval()
    views = batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = Batch([torch.cat([view[order] for view in views.views.chunk(2)])], views.indices[order])
    torch.testing.assert_close(method.embed(moved)["z"], method.embed(views)["z"][order])


def test_semi_hard_nt_xent_is_the_users_mistake():
    with pytest.raises(ValidationError, match="nt_logistic or margin"):
        SimCLR.Config(semi_hard=True)
    with pytest.raises(UserError, match=r"method.*semi_hard=false"):
        resolve(["method=simclr", "method.semi_hard=true"])


@pytest.mark.parametrize("name", LOSSES)
def test_contract_of_each_loss(name):
    check_method(SimCLR, **LOSSES[name][0])


@pytest.mark.parametrize("name", HEADS)
def test_contract_of_each_head(name):
    check_method(SimCLR, **HEADS[name][0])


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_learns_to_tell_a_batch_apart(name):
    method, views = make(**LOSSES[name][0]), batch()
    images = views.views.chunk(2)[0]
    views.crops[0] = torch.cat([images, images + 1.5 * torch.randn_like(images)])
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    first, out = steps_on(views, method, optimizer, 30)
    assert out["loss"] < first["loss"]
    assert out["contrastive_accuracy"] > max(0.8, first["contrastive_accuracy"])
