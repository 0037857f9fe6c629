"""A loaded backbone: its facts, and that it can do what the plain network can."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn

from sslkit.backbones import Backbone, create_backbone, load_backbone, save_backbone

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "b.safetensors"
    net = create_backbone("shufflenetv2", 32, stem="imagenet")
    save_backbone(net, path, name="shufflenetv2", image_size=32, mean=MEAN, std=STD)
    return load_backbone(path)


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_it_tells_what_one_needs_to_use_it(backbone, images):
    assert isinstance(backbone, Backbone)
    assert (backbone.name, backbone.width, backbone.stem_kind, backbone.image_size) == (
        "shufflenetv2",
        1024,
        "imagenet",
        32,
    )
    assert (backbone.mean, backbone.std) == (MEAN, STD)
    assert not backbone.training
    assert torch.equal(backbone(images), backbone.net(images))
    assert backbone(images).shape == (2, backbone.width)


def test_its_keys_are_the_plain_network_s(backbone):
    plain = torchvision.models.shufflenet_v2_x1_0()
    state = backbone.state_dict()
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    changed = {key: torch.zeros_like(value) for key, value in state.items()}
    again = copy.deepcopy(backbone)
    again.load_state_dict(changed)
    assert all(not value.any() for value in again.state_dict().values())


def test_its_keys_stay_plain_within_another_module(backbone):
    classifier = nn.Sequential(copy.deepcopy(backbone), nn.Linear(backbone.width, 3))
    state = classifier.state_dict()
    assert "0.conv1.0.weight" in state
    assert not any(".net." in key for key in state)
    other = nn.Sequential(copy.deepcopy(backbone), nn.Linear(backbone.width, 3))
    other.load_state_dict({key: value + 1 for key, value in state.items()})
    assert torch.equal(other.state_dict()["0.conv1.0.weight"], state["0.conv1.0.weight"] + 1)
    with pytest.raises(RuntimeError, match="conv1"):
        other.load_state_dict({key: value for key, value in state.items() if "conv1.0" not in key})


@pytest.mark.parametrize(
    "made_again",
    [
        copy.deepcopy,
        lambda backbone: pickle.loads(pickle.dumps(backbone)),
        torch.jit.script,
        torch.fx.symbolic_trace,
        lambda backbone: torch.jit.trace(backbone, torch.randn(2, 3, 32, 32)),
    ],
    ids=["deepcopy", "pickle", "script", "fx", "trace"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_it_can_be_copied_scripted_and_traced(backbone, images, made_again):
    torch.testing.assert_close(made_again(backbone)(images), backbone(images))
