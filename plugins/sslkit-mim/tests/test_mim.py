"""MAE against its paper: what is hidden, what the encoder sees, what the loss counts."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sslkit_mim.augmentation import MAEAugmentation
from sslkit_mim.decoder import Decoder
from sslkit_mim.mae import MAE
from sslkit_mim.pixels import hidden_mean, hidden_mse, patch_pixels
from timm.models import VisionTransformer
from torch.nn import functional as F

from sslkit import plugins
from sslkit.errors import UserError
from sslkit.methods import Batch, RunInfo
from sslkit.testing import TinyBackbone, check_augmentation, check_method, check_precision, steps_on

SMALL = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def make_vit(**options):
    options = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0} | options
    vit = VisionTransformer(**options)
    vit.width = vit.embed_dim
    return vit


def make(backbone=None, image_size=32, **options):
    torch.manual_seed(0)
    info = RunInfo(images=100, classes=0, image_size=image_size)
    return MAE(MAE.Config(**SMALL | options), backbone or make_vit(), info)


def make_batch(images=4, views=1, size=32):
    generator = torch.Generator().manual_seed(1)
    return Batch([torch.randn(views * images, 3, size, size, generator=generator)], torch.arange(images))


def every_patch(images, patches=64):
    return torch.arange(patches).expand(images, -1)


# --- pixels and loss ---


def slow_loss(predicted, images, hidden, size, normalise):
    """He et al. 2022, Section 3, a patch at a time, with the reference code's unbiased variance."""
    side = images.shape[2] // size
    errors = []
    for n, image in enumerate(images.numpy()):
        for patch in range(side * side):
            if not hidden[n, patch]:
                continue
            row, column = divmod(patch, side)
            box = image[:, row * size : (row + 1) * size, column * size : (column + 1) * size].reshape(-1)
            if normalise:
                box = (box - box.mean()) / np.sqrt(box.var(ddof=1) + 1e-6)
            errors.append(((predicted[n, patch] - box) ** 2).mean())
    return np.mean(errors)


@pytest.mark.parametrize("normalise", [True, False])
def test_loss_is_the_mean_over_hidden_patches(normalise):
    images = 3 + 2 * torch.randn(3, 3, 8, 8, dtype=torch.float64)
    predicted = torch.randn(3, 16, 12, dtype=torch.float64, requires_grad=True)
    hidden = torch.rand(3, 16).argsort(1) < 12
    loss = hidden_mse(predicted, patch_pixels(images, 2, normalise), hidden)
    slow = slow_loss(predicted.detach().numpy(), images, hidden, 2, normalise)
    assert loss.item() == pytest.approx(slow, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, predicted)
    expected = 2 * (predicted.detach() - patch_pixels(images, 2, normalise)) * hidden[..., None] / (36 * 12)
    torch.testing.assert_close(gradient, expected)


def test_patches_fold_back_into_the_image():
    images = torch.randn(2, 3, 12, 12)
    patches = patch_pixels(images, 4)
    assert patches.shape == (2, 9, 48)
    torch.testing.assert_close(F.fold(patches.transpose(1, 2), 12, 4, stride=4), images)
    torch.testing.assert_close(patches[1, 5].view(3, 4, 4), images[1, :, 4:8, 8:12])


def test_normalised_patches():
    patches = patch_pixels(5 + 3 * torch.randn(2, 3, 8, 8, dtype=torch.float64), 4, normalise=True)
    torch.testing.assert_close(patches.mean(2), torch.zeros(2, 4, dtype=torch.float64))
    torch.testing.assert_close(patches.var(2), torch.ones(2, 4, dtype=torch.float64), rtol=1e-5, atol=0)
    assert patch_pixels(torch.ones(1, 3, 4, 4), 4, normalise=True).abs().max() == 0


def test_hidden_mean_counts_hidden_values_alone():
    target = torch.tensor([[[1.0, 3.0], [100.0, 100.0]], [[100.0, 100.0], [5.0, 7.0]]])
    assert hidden_mean(target, torch.tensor([[1.0, 0.0], [0.0, 1.0]])) == 4


def test_loss_is_computed_in_float32_under_autocast():
    predicted, target = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    check_precision(hidden_mse, predicted, target, torch.ones(2, 4, dtype=torch.float64))


# --- encoder ---


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
def test_encoder_of_all_patches_gives_the_backbone_s_tokens(options):
    method = make(make_vit(**options))
    images = make_batch().views
    tokens = method.encode(images, every_patch(4))
    torch.testing.assert_close(tokens, method.backbone.fc_norm(method.backbone.forward_features(images)))
    if "class_token" not in options:
        torch.testing.assert_close(tokens[:, 0], method.backbone(images))


def test_encoder_sees_the_visible_patches_alone():
    method = make()
    images = make_batch().views
    visible = torch.rand(4, 64).argsort(1)[:, :16]
    tokens = method.encode(images, visible)
    assert tokens.shape == (4, 17, 24)
    seen = torch.zeros(4, 64).scatter(1, visible, 1).view(4, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(method.encode(images * seen + 9 * (1 - seen), visible), tokens)
    assert not torch.allclose(method.encode(images + seen * torch.randn_like(images), visible), tokens)


def test_encoder_tokens_follow_the_order_of_the_patches():
    method = make()
    images = make_batch().views
    order = torch.randperm(64)
    shuffled = method.encode(images, order.expand(4, -1))
    torch.testing.assert_close(
        shuffled[:, 1:], method.encode(images, every_patch(4))[:, 1:][:, order], rtol=1e-4, atol=1e-5
    )


def test_the_backbone_is_whole_again_after_a_step():
    method = make()
    images = make_batch().views
    before = method.backbone(images)
    method(make_batch())
    torch.testing.assert_close(method.backbone(images), before)
    with pytest.raises(RuntimeError):
        method.encode(images, torch.full((4, 2), 999))
    torch.testing.assert_close(method.backbone(images), before)


# --- decoder ---


def test_decoder_puts_tokens_where_they_came_from():
    torch.manual_seed(0)
    decoder = Decoder(encoder_dim=6, prefix=1, grid=(3, 3), pixels=12, dim=8, depth=0, heads=2)
    decoder.pixels = decoder.norm = torch.nn.Identity()
    tokens, visible = torch.randn(2, 3, 6), torch.tensor([[7, 0], [2, 5]])
    out = decoder(tokens, visible) - decoder.positions
    for n, patch in ((0, 7), (0, 0), (1, 2), (1, 5)):
        which = visible[n].tolist().index(patch)
        torch.testing.assert_close(out[n, patch], decoder.embed(tokens[n, 1 + which]))
    for n, patch in ((0, 1), (1, 8)):
        torch.testing.assert_close(out[n, patch], decoder.mask_token[0, 0])


def test_decoder_positions_are_the_reference_code_s():
    """get_2d_sincos_pos_embed, a quarter of the columns each: sines and cosines of row and column/10000^(i/quarter)."""
    positions = Decoder(6, 1, (3, 5), 12, dim=16, depth=0, heads=2).positions.double().numpy()
    frequencies = 10000.0 ** -(np.arange(4) / 4)
    for patch, (row, column) in enumerate(np.ndindex(3, 5)):
        expected = np.concatenate([f(axis * frequencies) for f in (np.sin, np.cos) for axis in (row, column)])
        np.testing.assert_allclose(positions[patch], expected, atol=1e-6)


def test_decoder_head_sees_every_patch_but_no_prefix():
    decoder = Decoder(encoder_dim=6, prefix=3, grid=(2, 2), pixels=12, dim=8, depth=1, heads=2)
    assert decoder(torch.randn(5, 4, 6), torch.randint(4, (5, 1))).shape == (5, 4, 12)
    assert not any("positions" in name for name in decoder.state_dict())


# --- method ---


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 16), (0.5, 32), (0.9, 6), (0.999, 1)])
def test_exactly_the_share_is_hidden(ratio, visible):
    method = make(mask_ratio=ratio)
    seen = []
    method.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    out = method(make_batch())
    assert seen[0].shape == (4, visible)
    assert all(len(set(row)) == visible for row in seen[0].tolist())
    assert len({tuple(sorted(row)) for row in seen[0].tolist()}) == 4
    assert out["masked_share"].item() == pytest.approx(1 - visible / 64)


def test_masks_come_from_the_global_generator():
    method, losses = make(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(method(make_batch())["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_all_views_are_painted():
    method = make()
    method.eval()
    out = method(make_batch(views=2))
    assert out["loss"].isfinite()
    seen = []
    method.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    method(make_batch(images=3, views=2))
    assert seen[0].shape == (6, 64, 48)


def test_painting_gets_better():
    torch.manual_seed(0)
    method = make()
    ramp = torch.linspace(-1, 1, 32).expand(32, 32)
    angles = torch.rand(8, 1, 1, 1) * 6.3
    batch = Batch([(ramp * angles.cos() + ramp.T * angles.sin()).expand(-1, 3, -1, -1).clone()], torch.arange(8))
    first, out = steps_on(batch, method, torch.optim.AdamW(method.parameters(), 3e-3), 60)
    assert first["explained_variance"] < 0.1
    assert out["explained_variance"] > 0.5
    assert out["loss"] < first["loss"] / 2


def test_explained_variance_of_a_perfect_and_of_an_empty_guess():
    method = make(norm_pixels=False)
    batch = make_batch()
    method.decoder = torch.nn.Identity()
    for guess, expected in ((patch_pixels(batch.views, 4), 1), (torch.zeros(4, 64, 48), 0)):
        method.decoder.forward = lambda tokens, visible, guess=guess: guess
        assert method(batch)["explained_variance"].item() == pytest.approx(expected, abs=1e-3)


def test_other_backbones_are_the_users_mistake():
    with pytest.raises(UserError, match="backbone=vit_tiny"):
        make(TinyBackbone())
    with pytest.raises(UserError, match="backbone=vit_tiny"):
        make(make_vit(global_pool="map", class_token=False))


@pytest.mark.parametrize(("size", "patch"), [(30, 4), (16, 16)])
def test_patches_that_do_not_fit_are_the_users_mistake(size, patch):
    with pytest.raises(UserError, match=rf"patches of {patch} px, of which {size} px must be a multiple"):
        make(make_vit(img_size=size, patch_size=patch), image_size=size)


@pytest.mark.parametrize("dim", [18, 20])
def test_the_decoder_s_heads_must_fit(dim):
    with pytest.raises(ValidationError, match="multiple of 4 and of decoder_heads=8"):
        MAE.Config(decoder_dim=dim, decoder_heads=8)


@pytest.mark.parametrize("size", [32, 96])
def test_contract(size):
    check_method(MAE, image_size=size, backbone="vit_tiny", **SMALL)


def test_view_contract():
    check_augmentation(MAEAugmentation)
    assert MAEAugmentation(MAEAugmentation.Config(), 32, (0.5,) * 3, (0.5,) * 3).n_views == 1


def test_registered_without_importing_torch():
    assert plugins.find("methods", "mae") is MAE
    assert plugins.find("augmentations", "mae") is MAEAugmentation
    code = "import sys, sslkit_mim; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
