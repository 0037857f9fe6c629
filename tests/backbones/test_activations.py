"""Memory of activations, counted without any."""

import pytest
import torch
from torch import nn

from sslkit.backbones.activations import activation_bytes
from sslkit.backbones.build import create_backbone
from sslkit.config.base import Choice
from sslkit.config.components import BackboneConfig


def counted(name, size):
    """Count by a real pass: 4 bytes for each output element of each layer, one image."""
    net = create_backbone(name, size).eval()
    total = []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, inputs, output: total.append(4 * output.numel()))
    with torch.no_grad():
        net(torch.rand(1, 3, size, size))
    return sum(total)


@pytest.mark.parametrize(("name", "size"), [("shufflenetv2", 32), ("resnet18", 96), ("vit_tiny", 32)])
def test_all_outputs_are_counted(name, size):
    state = torch.get_rng_state()
    found = activation_bytes(Choice(name=name, options=BackboneConfig()), size)
    assert torch.equal(torch.get_rng_state(), state), "the weights of a seed do not depend on it"
    assert found == counted(name, size)


def test_pretrained_weights_are_not_needed_to_count(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    options = BackboneConfig(pretrained=tmp_path / "weights.safetensors")
    plain = activation_bytes(Choice(name="squeezenet", options=BackboneConfig()), 64)
    assert activation_bytes(Choice(name="squeezenet", options=options), 64) == plain


def test_a_network_that_cannot_be_built_without_data_is_not_counted(monkeypatch):
    def stubborn(self, images):
        raise NotImplementedError("meta")

    monkeypatch.setattr(nn.Conv2d, "forward", stubborn)
    assert activation_bytes(Choice(name="resnet18", options=BackboneConfig()), 64) is None
