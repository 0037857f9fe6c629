"""EMP-SSL, LeJEPA, DCL and DCLW as methods: views, heads, figures, several processes; and their augmentations."""

import math

import pytest
import torch
from sslkit_fewsteps.augmentations import LeJEPAAugmentation, PatchAugmentation
from sslkit_fewsteps.dcl import DCL, DCLW
from sslkit_fewsteps.empssl import EMPSSL
from sslkit_fewsteps.lejepa import LeJEPA
from sslkit_fewsteps.losses import dcl, dclw, empssl, lejepa, positive_weights, random_directions

from sslkit import plugins
from sslkit.errors import UserError
from sslkit.machine.distributed import gather
from sslkit.methods import Batch, RunInfo
from sslkit.nn.momentum import momentum_encoder
from sslkit.testing import TinyBackbone, check_augmentation, check_method, in_two_processes, steps_on

METHODS = {"empssl": EMPSSL, "lejepa": LeJEPA, "dcl": DCL, "dclw": DCLW}
IMAGES = 6


def make(name, **options):
    torch.manual_seed(0)
    few = {"directions": 20} if name == "lejepa" else {}
    config = METHODS[name].Config(**{"hidden": 32, "dim": 8} | few | options)
    return METHODS[name](config, TinyBackbone(), RunInfo(100, 0, 32))


def batch(large=2, small=0, images=IMAGES):
    generator = torch.Generator().manual_seed(1)
    sizes = [(large, 32), (small, 16)] if small else [(large, 32)]
    crops = [torch.randn(n * images, 3, size, size, generator=generator) for n, size in sizes]
    return Batch(crops, torch.arange(images))


def head(method):
    return method.head if isinstance(method, DCL) else method.projector


def one_pass(method, views):
    """Embeddings [B, V, dim], all views passed through the network together."""
    twin = momentum_encoder(method)
    return head(twin)(twin.backbone(views.views)).unflatten(0, (-1, IMAGES)).transpose(0, 1)


@pytest.mark.parametrize("name", METHODS)
def test_contract(name):
    check_method(METHODS[name], hidden=32, dim=16)


@pytest.mark.parametrize("name", METHODS)
def test_registered(name):
    assert plugins.find("methods", name) is METHODS[name]


def test_empssl_is_its_loss_of_all_patches():
    method, views = make("empssl", invariance_weight=3.0, eps=0.5), batch(5)
    z = one_pass(method, views)
    out = method(views)
    torch.testing.assert_close(out["loss"].detach(), empssl(z, 3.0, 0.5))
    assert 0 < out["coding_rate"] < 1
    assert 0 < out["patch_similarity"] < 1
    # Figures and loss are parts of each other.
    rate = out["coding_rate"] * len(z) / 2 * math.log1p(8 / (len(z) * 0.5))
    torch.testing.assert_close(out["loss"].detach(), -(rate + 3 * out["patch_similarity"]), rtol=1e-4, atol=1e-4)


def test_empssl_s_projector_is_the_official_one():
    with torch.device("meta"):
        layers = EMPSSL(EMPSSL.Config(), TinyBackbone(), RunInfo(100, 0, 32)).projector
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    assert [layer.out_features for layer in layers if hasattr(layer, "out_features")] == [4096, 4096, 1024]


@pytest.mark.parametrize("small", [0, 3])
def test_lejepa_is_its_loss_of_full_size_and_small_views(small):
    method, views = make("lejepa", sigreg_weight=0.3), batch(2, small)
    twin = momentum_encoder(method)
    features = torch.cat([twin.backbone(crops) for crops in views.crops])
    z = twin.projector(features).unflatten(0, (-1, IMAGES)).transpose(0, 1)
    torch.manual_seed(5)
    out = method(views)
    torch.manual_seed(5)
    directions = random_directions(8, 20, torch.device("cpu"))
    expected = lejepa(z[:, :2], z[:, 2:] if small else None, directions, 0.3)
    torch.testing.assert_close(out["loss"].detach(), expected)
    torch.testing.assert_close(out["loss"].detach(), 0.7 * out["prediction"] + 0.3 * out["sigreg"])
    torch.testing.assert_close(out["embedding_variance"], z[:, 0].var(0).mean())


def test_lejepa_draws_other_directions_for_every_loss():
    method, views = make("lejepa"), batch()
    assert method(views)["sigreg"] != method(views)["sigreg"]


def test_dcl_is_its_loss_of_both_views():
    views = batch()
    method = make("dcl", temperature=0.3)
    z = one_pass(method, views).unbind(1)
    out = method(views)
    torch.testing.assert_close(out["loss"].detach(), dcl(*z, 0.3))
    assert 0 <= out["contrastive_accuracy"] <= 1
    method = make("dclw", temperature=0.3, sigma=0.7)
    z = one_pass(method, views).unbind(1)
    out = method(views)
    torch.testing.assert_close(out["loss"].detach(), dclw(*z, 0.3, 0.7))
    torch.testing.assert_close(out["weight_spread"], positive_weights(*z, 0.7).std(correction=0))


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("name", ["dcl", "dclw"])
def test_dcl_needs_two_views(name, views):
    with pytest.raises(UserError, match=r"augment\.views=2"):
        make(name)(batch(views))


@pytest.mark.parametrize("name", ["empssl", "lejepa"])
def test_one_view_is_too_few(name):
    with pytest.raises(UserError, match=r"augment\.views=2"):
        make(name)(batch(1))


@pytest.mark.parametrize("name", METHODS)
def test_a_few_steps_bring_views_of_an_image_together_and_keep_images_apart(name):
    # λ of EMP-SSL belongs to the number of images.
    method = make(name, invariance_weight=20.0) if name == "empssl" else make(name)
    views = batch(images=32)
    images = views.views.chunk(2)[0]
    views.crops[0] = torch.cat([images, images + 0.3 * torch.randn_like(images)])
    first, out = steps_on(views, method, torch.optim.Adam(method.parameters(), 3e-3), 40)
    assert out["loss"] < first["loss"]
    if name == "empssl":
        assert out["patch_similarity"] > max(0.9, first["patch_similarity"])
        assert out["coding_rate"] > 0.5
    elif name == "lejepa":
        assert out["prediction"] < 0.3
        assert 0.5 < out["embedding_variance"] < 1.5
        assert out["sigreg"] < first["sigreg"]
    else:
        assert out["contrastive_accuracy"] > max(0.9, first["contrastive_accuracy"])


# --- several processes ---


def rows(name):
    """The method, and embeddings of 8 images in float64."""
    z = torch.randn(8, 2, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return make(name).double(), z, "global" if name == "lejepa" else "z"


def agrees_with_one(rank, name):
    method, z, key = rows(name)
    whole = z.clone().requires_grad_()
    torch.manual_seed(0)
    alone = method.loss({key: whole})
    alone["loss"].backward()
    mine = z.chunk(2)[rank].clone().requires_grad_()
    # Each process has a seed of its own; what is drawn within the loss is the first one's.
    torch.manual_seed(rank)
    out = method.loss({key: gather(mine)})
    out["loss"].backward()
    torch.testing.assert_close(out, alone)
    # The mean over the two processes of what reaches the parameters.
    torch.testing.assert_close(mine.grad / 2, whole.grad.chunk(2)[rank])


def one_of_two(rank):
    for name in METHODS:
        agrees_with_one(rank, name)


def test_two_processes_have_the_loss_and_gradient_of_one():
    in_two_processes(one_of_two)


# --- augmentations ---


@pytest.mark.parametrize("augmentation_class", [PatchAugmentation, LeJEPAAugmentation])
def test_augmentation_contract(augmentation_class):
    check_augmentation(augmentation_class)


def views_of(augmentation_class, images, **options):
    config = augmentation_class.Config(**options)
    augmentation = augmentation_class(config, 32, (0.0,) * 3, (1.0,) * 3)
    return augmentation(images, torch.Generator().manual_seed(0))[0]


def test_numbers_of_views():
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    assert views_of(PatchAugmentation, images).shape == (60, 3, 32, 32)
    assert views_of(PatchAugmentation, images, views=7).shape == (21, 3, 32, 32)
    assert views_of(LeJEPAAugmentation, images).shape == (12, 3, 32, 32)


def test_a_patch_shows_a_quarter_of_the_image():
    """On a ramp the range of values tells how much of the width a patch shows."""
    ramp = torch.arange(128, dtype=torch.uint8).expand(16, 3, 128, 128)
    plain = {name: {"p": 0} for name in ("flip", "jitter", "grayscale", "blur", "solarize")}
    patches = views_of(PatchAugmentation, ramp, **plain) * 255
    shown = patches.amax((1, 2, 3)) - patches.amin((1, 2, 3))
    torch.testing.assert_close(shown / 128, torch.full((320,), 0.5), atol=0.03, rtol=0)
    # The patches of one image lie in many places.
    assert patches.mean((1, 2, 3)).unflatten(0, (20, 16))[:, 0].std() > 10
