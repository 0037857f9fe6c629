"""A component that breaks its contract is named, with class, file and line, and costs nothing once it has kept it."""

import copy

import pytest
import torch
from torch import nn

from sslkit.augment.base import Augmentation
from sslkit.errors import UserError
from sslkit.methods import Batch, Method, RunInfo
from sslkit.training.contract import check_augmentation_once, check_method_once

IMAGES = 4


def batch():
    return Batch([torch.rand(2 * IMAGES, 3, 8, 8)], torch.arange(IMAGES))


def built(kind):
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    backbone.width = 5
    method = kind(kind.Config(), backbone, RunInfo(images=8, classes=0, image_size=8))
    check_method_once(method, "mine")
    return method


def returning(result):
    class Mine(Method):
        def forward(self, batch):
            return result(self.backbone(batch.views))

    return built(Mine)


def message_of(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda x: {"los": x.mean()}, "a dict with the key \"loss\", but returns a dict with the keys 'los'"),
        (lambda x: x.mean(), 'a dict with the key "loss", but returns a tensor of shape []'),
        (lambda x: None, "but returns a NoneType"),
        (lambda x: {"loss": x.mean(1)}, "one number as 'loss', in a tensor, but returns a tensor of shape [8]"),
        (lambda x: {"loss": x.mean(), "std": 0.1}, "one number as 'std', in a tensor, but returns a float"),
        (lambda x: {"loss": x.mean().detach()}, 'a "loss" with a graph'),
    ],
)
def test_what_forward_returns_is_checked_in_the_first_step(result, words):
    message = message_of(returning(result), batch())
    assert message.startswith("method mine: ")
    assert "Mine.forward (test_contract_of_components.py:" in message
    assert words in message


class Pair(Method):
    def embed(self, batch):
        return {"z": batch.by_image(self.backbone(batch.views))}

    def loss(self, embeddings):
        return {"loss": embeddings["z"].std()}


class ByView(Pair):
    def embed(self, batch):
        return {"z": self.backbone(batch.views)}


class Alone(Method):
    def embed(self, batch):
        return {"z": self.backbone(batch.views)[: len(batch.indices)]}


def test_embeddings_are_one_row_an_image():
    message = message_of(built(ByView), batch())
    assert "ByView.embed" in message
    assert "one row of 'z' for each of the 4 images, but returns a tensor of shape [8, 5]" in message


def test_a_method_without_a_loss_is_a_mistake():
    assert "Alone defines embed, but no loss" in message_of(built(Alone), batch())
    assert "Method defines neither forward nor embed" in message_of(built(Method), batch())


def test_the_checks_are_gone_after_the_first_step_and_belong_to_each_copy():
    method = built(Pair)
    twin = copy.deepcopy(method)
    method(batch())
    assert not {"forward", "embed", "loss"} & method.__dict__.keys()
    assert twin.__dict__["embed"].__self__ is twin
    assert twin(batch())["loss"].requires_grad


def test_views_are_checked_too():
    class Flat(Augmentation):
        def __init__(self):
            nn.Module.__init__(self)

        def forward(self, images, generator):
            return [images.float().flatten(1)]

    flat = Flat()
    check_augmentation_once(flat, "flat")
    message = message_of(flat, torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None)
    assert message.startswith("augmentation flat: Flat.forward (")
    assert "[V*4, 3, h, w], but returns a tensor of shape [4, 192]" in message
