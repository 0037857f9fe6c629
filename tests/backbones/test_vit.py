"""The vision transformer whose depth, width and patches can be set."""

import pytest
import timm
import torch

from sslkit import plugins
from sslkit.backbones import create_backbone, load_backbone, save_backbone
from sslkit.backbones.vit import ViTConfig
from sslkit.config.base import Choice
from sslkit.config.resolve import resolve
from sslkit.errors import UserError
from sslkit.testing import check_backbone

SMALL = {"depth": 2, "heads": 2, "dim": 32}


def blocks_of(net):
    return len(net.blocks), net.blocks[0].attn.num_heads, net.embed_dim, net.patch_embed.patch_size[0]


def test_it_keeps_the_contract():
    check_backbone("vit")


def test_the_defaults_are_timms_vit_tiny():
    mine = create_backbone("vit", 224)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(images), theirs.eval()(images))


def test_each_setting_arrives():
    net = create_backbone("vit", 96, depth=3, heads=4, dim=48, patch=8, mlp_ratio=2, dropout=0.2)
    assert blocks_of(net) == (3, 4, 48, 8)
    assert net.width == 48
    assert net.blocks[0].mlp.fc1.out_features == 96
    block = net.blocks[0]
    dropped = (net.pos_drop, block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2)
    assert [layer.p for layer in dropped] == [0.2] * 4
    assert block.attn.attn_drop.p == 0


@pytest.mark.parametrize(("size", "patch", "expected"), [(32, 16, 4), (96, 16, 16), (32, 8, 8), (36, 4, 4)])
def test_the_small_stem_quarters_patches_of_16(size, patch, expected):
    assert blocks_of(create_backbone("vit", size, patch=patch, **SMALL))[3] == expected


@pytest.mark.parametrize(("size", "patch"), [(36, 8), (50, 16), (96, 16)])
def test_sides_that_patches_do_not_divide_are_padded_with_zeros(size, patch):
    net = create_backbone("vit", size, patch=patch, stem="imagenet", **SMALL).eval()
    images = torch.randn(2, 3, size, size)
    rest = -size % patch
    padded = torch.nn.functional.pad(images, (0, rest, 0, rest))
    with torch.no_grad():
        torch.testing.assert_close(net(images), net(padded))
        assert net(torch.randn(1, 3, 2 * size, size)).shape == (1, 32)


def test_heads_that_do_not_divide_dim_are_a_mistake():
    with pytest.raises(UserError, match="heads=5 does not divide dim=192"):
        create_backbone("vit", 32, heads=5)
    with pytest.raises(UserError, match="backbone: heads=5 does not divide dim=192"):
        resolve(["backbone=vit", "backbone.heads=5"])


def test_a_saved_one_comes_back(tmp_path):
    choice = Choice(name="vit", options=ViTConfig(**SMALL, patch=8, dropout=0.1))
    net = create_backbone(choice, 40)
    header = {"image_size": 40, "mean": (0.5,) * 3, "std": (0.2,) * 3, "config": {"backbone": choice.flat()}}
    save_backbone(net, tmp_path / "vit.safetensors", name="vit", **header)
    again = load_backbone(tmp_path / "vit.safetensors")
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(again(images), net.eval()(images))
    assert blocks_of(again.net) == (2, 2, 32, 8)
    assert again.net.pos_drop.p == 0.1


def test_show_names_its_settings(sslkit):
    shown = sslkit("show", "backbones", "vit").stdout
    assert all(f"backbone.{name}" in shown for name in ViTConfig.model_fields)
    assert "vit" in plugins.names("backbones")
