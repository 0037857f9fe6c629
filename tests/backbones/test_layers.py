"""Layers by their names: which have a map, and what they put out during a forward pass."""

import pytest
import torch
from torch import nn

from sslkit.backbones import create_backbone
from sslkit.backbones.layers import as_map, last_map, layer_names, tap
from sslkit.errors import UserError
from sslkit.testing import TinyBackbone

LAST = {
    "shufflenetv2": ("conv5", 1024, 4),
    "squeezenet": ("classifier.2", 512, 8),
    "mobilenetv2": ("bn2", 1280, 4),
    "mobilenetv3_small": ("blocks", 576, 4),
    "efficientnet_lite0": ("bn2", 1280, 4),
    "resnet18": ("layer4", 512, 4),
    "vit_tiny": ("norm", 192, 8),
    "torchvision:swin_t": ("permute", 768, 1),
    "timm:test_resnet": ("layer4", 96, 4),
}
"""At 32 px: the last map's layer, channels and side."""


class InPlace(nn.Module):
    """An activation overwrites what the convolution made."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(images)).mean((2, 3))


@pytest.mark.parametrize("name", LAST)
def test_the_last_map_of_every_backbone(name):
    net = create_backbone(name, 32)
    layer, channels, side = LAST[name]
    assert last_map(net, 32) == layer
    assert layer_names(net, 32)[layer] == (channels, side, side)
    with torch.no_grad(), tap(net, layer) as tapped:
        net(torch.randn(2, 3, 32, 32))
    assert tapped.output.shape == (2, channels, side, side)


def test_the_map_before_pooling_even_where_it_is_one_position():
    net = create_backbone("resnet18", 32, stem="imagenet")
    assert last_map(net, 32) == "layer4"
    assert layer_names(net, 32)["layer4"] == (512, 1, 1)


def test_names_are_in_the_order_of_the_forward_pass():
    layers = layer_names(create_backbone("timm:test_resnet", 32), 32)
    assert [name for name in layers if name.startswith("layer") and "." not in name] == [f"layer{i}" for i in "1234"]
    sides = [layers[f"layer{i}"][1] for i in "1234"]
    assert sides == sorted(sides, reverse=True)
    assert "" not in layers


def test_looking_at_layers_changes_nothing():
    net = TinyBackbone().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    layer_names(net, 32)
    assert net.training
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_pooled_map_gives_the_features():
    net, images = create_backbone("resnet18", 32).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), tap(net, "layer4") as tapped:
        features = net(images)
    torch.testing.assert_close(tapped.output.mean((2, 3)), features)


def test_tokens_are_a_grid_without_the_class_token():
    net, images = create_backbone("vit_tiny", 32).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), tap(net, "norm") as last, tap(net, "patch_embed") as first:
        net(images)
        convolved = net.patch_embed.proj(images)
    assert last.raw.shape == (2, 65, 192)
    for row, column in ((0, 0), (2, 5), (7, 7)):
        assert torch.equal(last.output[:, :, row, column], last.raw[:, 1 + 8 * row + column])
    torch.testing.assert_close(first.output, convolved)


def test_channels_last_maps_get_their_channels_first():
    nhwc = torch.randn(2, 4, 4, 7)
    assert torch.equal(as_map(nhwc), nhwc.permute(0, 3, 1, 2))
    nchw = torch.randn(2, 7, 4, 4)
    assert as_map(nchw) is nchw


def test_tapping_keeps_the_network_as_it_was():
    net, images = create_backbone("timm:test_resnet", 32).eval(), torch.randn(2, 3, 32, 32)
    plain = net(images)
    with tap(net, "layer2"):
        assert torch.equal(net(images), plain)
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(ZeroDivisionError), tap(net, "layer2"):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in net.modules())


def test_what_follows_cannot_overwrite_the_output():
    net, images = InPlace(), torch.randn(2, 3, 8, 8)
    with tap(net, "conv") as tapped:
        net(images)
    assert torch.equal(tapped.output, net.conv(images))
    assert tapped.output.min() < 0


def test_gradients_flow_from_the_output_and_to_it():
    net, images = InPlace(), torch.randn(2, 3, 8, 8)
    with tap(net, "conv") as tapped:
        score = net(images).sum()
    (at_map,) = torch.autograd.grad(score, tapped.raw, retain_graph=True)
    torch.testing.assert_close(at_map, (tapped.raw > 0).float() / 36)
    tapped.output.square().sum().backward()
    expected = torch.autograd.grad(net.conv(images).square().sum(), net.conv.weight)[0]
    torch.testing.assert_close(net.conv.weight.grad, expected)


def test_an_unknown_layer_is_the_users_mistake():
    net = create_backbone("timm:test_resnet", 32)
    with pytest.raises(UserError, match=r"no layer called 'layer5'; the closest are .*layer4"), tap(net, "layer5"):
        pass
    with pytest.raises(UserError, match="no layer called ''"), tap(net, ""):
        pass


def test_features_have_no_map():
    with pytest.raises(UserError, match=r"\[2, 5\] has no map"):
        as_map(torch.zeros(2, 5))
    with pytest.raises(UserError, match="no layer with a map"):
        last_map(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), 32)
