"""PIRL against its paper's equations, and its memory bank."""

import math
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.errors import UserError
from sslkit.methods.base import Batch, RunInfo
from sslkit.methods.pirl import PIRL, nce, shuffled
from sslkit.methods.transforms import NAMES
from sslkit.nn.banks import MemoryBank
from sslkit.testing import TinyBackbone, check_method, steps_on

INFO = RunInfo(images=20, classes=0, image_size=32)


def make(**options: object) -> PIRL:
    torch.manual_seed(0)
    return PIRL(PIRL.Config(**options), TinyBackbone(), INFO)


def batch(images: int = 6, views: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(1)
    indices = torch.randperm(INFO.images, generator=generator)[:images]
    return Batch([torch.randn(views * images, 3, 32, 32, generator=generator)], indices)


def embeddings(images: int = 6, dim: int = 128, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    image, transformed = torch.randn(2, images, dim, generator=generator, dtype=dtype)
    indices = torch.randperm(INFO.images, generator=generator)[:images]
    return {"image": image.requires_grad_(), "transformed": transformed.requires_grad_(), "indices": indices}


# --- the loss ---


def slow_nce(v: Tensor, m: Tensor, negatives: list[Tensor], tau: float) -> Tensor:
    """Misra & van der Maaten 2020, Eqs. 3 and 4, for one image, a candidate at a time."""

    def e(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b / (a.norm() * b.norm()) / tau).exp()

    total = e(v, m) + sum(e(v, other) for other in negatives)
    return -(e(v, m) / total).log() - sum((1 - e(v, other) / total).log() for other in negatives)


def slow_loss(given: dict[str, Tensor], bank: Tensor, weight: float, tau: float) -> Tensor:
    """Eq. 5, where all images but the image itself are negatives."""
    losses = []
    for image, copy, index in zip(given["image"], given["transformed"], given["indices"].tolist()):
        negatives = [row for number, row in enumerate(bank) if number != index]
        of_copy, of_image = (slow_nce(v, bank[index], negatives, tau) for v in (copy, image))
        losses.append(weight * of_copy + (1 - weight) * of_image)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("tau", [0.07, 0.5])
@pytest.mark.parametrize("weight", [0.5, 0.2, 1.0])
def test_the_loss_is_equation_5_with_its_gradient(weight, tau):
    method, given = make(temperature=tau, weight=weight).double(), embeddings()
    method.bank.rows.copy_(F.normalize(method.bank.rows))
    inputs = [given["image"], given["transformed"]]
    mine = method.loss(given)["loss"]
    slow = slow_loss(given, method.bank.rows, weight, tau)
    torch.testing.assert_close(mine, slow, rtol=1e-9, atol=1e-12)
    gradients = [torch.autograd.grad(loss, inputs, materialize_grads=True) for loss in (mine, slow)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)


def test_nce_of_one_row_by_hand():
    logits = torch.tensor([[1.0, 0.5, -2.0]], dtype=torch.float64)
    e = np.exp([1, 0.5, -2])
    h = e / e.sum()
    assert nce(logits).item() == pytest.approx(-np.log(h[0]) - np.log(1 - h[1]) - np.log(1 - h[2]), rel=1e-12)


def test_nce_gradient_agrees_with_differences():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nce, [logits])


@pytest.mark.parametrize("k", [1, 5, 100])
def test_nce_of_equal_logits(k):
    expected = (k + 1) * math.log(k + 1) - k * math.log(k)
    assert nce(torch.zeros(3, k + 1, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nce_is_exact_where_a_probability_rounds_to_one(dtype):
    logits = torch.tensor([[0.0, 100.0, 0.0]], dtype=dtype, requires_grad=True)
    value = nce(logits)
    value.backward()
    # -log h = 100, -log(1 - h) = 100 - log 2 of the large negative and about 0 of the other.
    assert value.item() == pytest.approx(200 - math.log(2), rel=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor([[-1.5, 2.0, -0.5]], dtype=dtype))
    assert nce(torch.tensor([[100.0, 0.0, 0.0]], dtype=dtype)).item() == pytest.approx(0, abs=1e-6)


def test_what_does_not_count_changes_nothing():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    wider = torch.cat([logits, torch.full((3, 2), -torch.inf, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(nce(wider), nce(logits))
    gradients = [torch.autograd.grad(nce(x), logits)[0] for x in (wider, logits)]
    torch.testing.assert_close(*gradients)


def test_negatives_are_other_images_drawn_anew_each_time():
    method, given = make(negatives=7), embeddings(dtype=torch.float32)
    drawn = [set(method.bank.draw(7).tolist()) for _ in range(50)]
    assert all(len(rows) == 7 and rows <= set(range(20)) for rows in drawn)
    assert set().union(*drawn) == set(range(20))
    assert len({method.loss(given)["loss"].item() for _ in range(5)}) > 1
    assert len(method.bank.draw(32000)) == 20


def test_the_bank_takes_no_gradient_and_the_scale_of_embeddings_does_not_matter():
    method, given = make().double(), embeddings()
    larger = {name: 7 * rows if rows.is_floating_point() else rows for name, rows in given.items()}
    torch.testing.assert_close(method.loss(larger)["loss"], method.loss(given)["loss"])
    assert not method.bank.rows.requires_grad


def test_what_is_logged():
    method, given = make().double(), embeddings()
    with torch.no_grad():
        given["transformed"].copy_(method.bank.rows[given["indices"]])
    out = method.loss(given)
    assert out["contrastive_accuracy"] == 1
    assert out["positive_similarity"].item() == pytest.approx(1, abs=1e-6)
    assert out["bank_visited"] == 0
    method.after_step(0.1)
    assert method.loss(given)["bank_visited"].item() == pytest.approx(6 / 20)


# --- embeddings ---


def test_the_heads_are_the_papers():
    plain, jigsaw = make(transforms=["rotation"]), make(transforms=["jigsaw"])
    assert plain.image_head.weight.shape == plain.transformed_head.weight.shape == (128, 16)
    assert jigsaw.transformed_head[0].weight.shape == (128, 16)
    assert jigsaw.transformed_head[2].weight.shape == (128, 9 * 128)
    assert jigsaw.bank.rows.shape == (20, 128)


@pytest.mark.parametrize("transforms", [["jigsaw"], ["rotation"], ["jigsaw", "rotation"]])
def test_embeddings_of_a_batch(transforms):
    views = batch()
    out = make(transforms=transforms).embed(views)
    assert out["image"].shape == out["transformed"].shape == (6, 128)
    assert torch.equal(out["indices"], views.indices)


class Recorder(nn.Module):
    """A backbone that keeps what it was given."""

    width = 3

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x.mean((2, 3))


def test_the_image_goes_in_whole_and_its_copy_transformed():
    method, views = PIRL(PIRL.Config(transforms=["flip"]), Recorder(), INFO), batch()
    views.crops[0] = views.views.clamp(-1, 1)
    method.embed(views)
    image, copy = method.backbone.seen
    assert torch.equal(image, views.views)
    torch.testing.assert_close(copy, views.views.flip(3), atol=1e-5, rtol=1e-5)


def test_jigsaw_comes_last_wherever_it_is_named():
    method, views = PIRL(PIRL.Config(transforms=["jigsaw", "grayscale"]), Recorder(), INFO), batch()
    method.embed(views)
    _, tiles = method.backbone.seen
    assert tiles.shape == (54, 3, 16, 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (INFO.mean, INFO.std))
    grey = tiles * std + mean
    assert (grey - grey.mean(1, keepdim=True)).abs().max() < 1e-3


def test_tiles_are_shuffled_each_image_by_its_own_permutation():
    tiles = torch.arange(9.0)[None, :, None].expand(200, -1, 2) + 10 * torch.arange(200.0)[:, None, None]
    mixed = shuffled(tiles)
    assert torch.equal(mixed.sort(1).values, tiles)
    orders = mixed[:, :, 0] - 10 * torch.arange(200.0)[:, None]
    assert len(orders.unique(dim=0)) > 190
    assert F.one_hot(orders.long(), 9).float().mean(0).sub(1 / 9).abs().max() < 0.1


def test_more_than_one_view_is_the_users_mistake():
    with pytest.raises(UserError, match=r"augment\.views=1"):
        make()(batch(views=2))


@pytest.mark.parametrize(
    ("transforms", "says"),
    [(["rotatoin"], "did you mean 'rotation'"), ([], "at least one"), (["blur", "blur"], "once")],
)
def test_transforms_that_cannot_be_are_refused(transforms, says):
    with pytest.raises(ValidationError, match=says):
        PIRL.Config(transforms=transforms)


def test_the_help_names_every_transformation():
    assert set(NAMES) <= set(re.findall(r"\w+", PIRL.Config.model_fields["transforms"].description))


@pytest.mark.parametrize(
    "transforms",
    [["jigsaw"], ["rotation"], ["jigsaw", "rotation"], ["jigsaw", "rotation", "blur"], ["crop", "jitter", "noise"]],
    ids="+".join,
)
def test_contract(transforms):
    check_method(PIRL, transforms=transforms)


def test_it_learns_to_tell_images_apart():
    method, views = make(transforms=["rotation", "jigsaw"], temperature=0.2), batch(16)
    colours = torch.randn(16, 3, 1, 1, generator=torch.Generator().manual_seed(1)).clamp(-1.3, 1.3)
    views.crops[0] = 1.5 * colours + 0.3 * views.views
    first, out = steps_on(views, method, torch.optim.Adam(method.parameters(), 1e-2), 40)
    assert out["loss"] < first["loss"] / 3
    assert out["contrastive_accuracy"] > 0.9


# --- the bank ---


def slow_update(bank: np.ndarray, indices: list[int], rows: np.ndarray, momentum: float) -> None:
    for index, row in zip(indices, rows):
        mixed = momentum * bank[index] + (1 - momentum) * row / np.linalg.norm(row)
        bank[index] = mixed / np.linalg.norm(mixed)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_rows_are_moving_averages_of_unit_length(momentum):
    torch.manual_seed(0)
    bank = MemoryBank(6, 4).double()
    expected = bank.rows.numpy().copy()
    for indices in ([0, 3], [3, 5, 1], [0, 1]):
        rows = 5 * torch.randn(len(indices), 4, dtype=torch.float64)
        bank.update(torch.tensor(indices), rows, momentum)
        slow_update(expected, indices, rows.numpy(), momentum)
    np.testing.assert_allclose(bank.rows.numpy(), expected, rtol=1e-10)


def test_a_row_moves_by_half_to_what_is_perpendicular_to_it():
    bank = MemoryBank(3, 2)
    bank.rows[1] = torch.tensor([1.0, 0.0])
    bank.update(torch.tensor([1]), torch.tensor([[0.0, 9.0]]))
    torch.testing.assert_close(bank.rows[1], torch.tensor([1.0, 1.0]) / math.sqrt(2))


def test_the_bank_starts_with_random_directions():
    rows = MemoryBank(2000, 8).rows
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2000))
    assert rows.mean(0).abs().max() < 0.05


def test_the_bank_knows_its_age():
    bank = MemoryBank(4, 2)
    assert bank.health() == {"bank_visited": 0, "bank_age": 0}
    bank.update(torch.tensor([0, 1]), torch.ones(2, 2))
    bank.update(torch.tensor([1]), torch.ones(1, 2))
    bank.update(torch.tensor([2]), torch.ones(1, 2))
    assert bank.health() == {"bank_visited": 0.75, "bank_age": 1}


def test_after_a_step_the_images_of_all_its_batches_are_in_the_bank():
    method = make(momentum=0.0)
    first, second = embeddings(dtype=torch.float32), embeddings(dtype=torch.float32)
    second["indices"] = torch.tensor([i for i in range(20) if i not in first["indices"]][:6])
    before = method.bank.rows.clone()
    for given in (first, second):
        method.loss(given)
    assert torch.equal(method.bank.rows, before)
    method.after_step(0.5)
    for given in (first, second):
        torch.testing.assert_close(method.bank.rows[given["indices"]], F.normalize(given["image"].detach()))
    untouched = [i for i in range(20) if i not in [*first["indices"], *second["indices"]]]
    assert torch.equal(method.bank.rows[untouched], before[untouched])
    assert method.bank.updates == 1
    method.loss(first)
    method.after_step(0.6)
    assert (method.bank.last_update == 2).sum() == 6
