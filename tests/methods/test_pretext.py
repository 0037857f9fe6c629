"""RotNet, jigsaw, and the two references: what they predict, and that shortcuts are closed."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sslkit.backbones import create_backbone
from sslkit.errors import UserError
from sslkit.methods import Batch, Jigsaw, Method, RandomInit, RotNet, RunInfo, Supervised
from sslkit.methods.jigsaw import distant_permutations, in_grey, standardised
from sslkit.methods.patches import gap_size, tile_size, tiles
from sslkit.methods.rotnet import rotations
from sslkit.nn.momentum import momentum_encoder
from sslkit.testing import TinyBackbone, check_method, steps_on

INFO = RunInfo(images=100, classes=3, image_size=32)
SMALL = {"permutations": 6, "dim": 8, "hidden": 16}
"""Settings of a small jigsaw."""


def make(method_class: type[Method], **options: object) -> Method:
    torch.manual_seed(0)
    return method_class(method_class.Config(**options), TinyBackbone(), INFO)


def images(count: int = 6, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def batch(count: int = 6, labels: list[int] | None = None, views: int = 1) -> Batch:
    given = None if labels is None else torch.tensor(labels)
    return Batch([images(views * count)], torch.arange(count), given)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Row by row, from the definition."""
    rows = [row.exp().sum().log() - row[target] for row, target in zip(logits, targets)]
    return sum(rows) / len(rows)


def train(method: Method, views: Batch, steps: int, lr: float) -> dict[str, Tensor]:
    return steps_on(views, method, torch.optim.Adam(method.parameters(), lr), steps)[1]


# --- RotNet ---


def test_right_angles_are_exact():
    x = images(2)
    turned = rotations(x, (0, 90, 180, 270))
    assert torch.equal(turned[0], x)
    assert torch.equal(turned[2], x.flip(2, 3))
    # Counter-clockwise: the top right corner becomes the top left one.
    assert torch.equal(turned[1][:, :, 0, 0], x[:, :, 0, -1])
    assert torch.equal(turned[3][:, :, 0, -1], x[:, :, 0, 0])


def test_slanted_angles_follow_each_other_by_quarter_turns():
    turned = rotations(images(2), tuple(range(0, 360, 45)))
    for first in (0, 1):
        quarters = [torch.rot90(turned[first], k, (2, 3)) for k in range(4)]
        torch.testing.assert_close(torch.stack(quarters), turned[first::2], atol=1e-4, rtol=0)


def test_slanted_angles_rotate_a_point_about_the_centre():
    x = torch.zeros(1, 1, 65, 65)
    x[0, 0, 32, 52] = 1
    for angle, turned in zip(range(0, 360, 45), rotations(x, tuple(range(0, 360, 45))), strict=True):
        y, x_ = divmod(int(turned.argmax()), 65)
        radius = 20 * math.sqrt(2)
        expected = 32 - radius * math.sin(math.radians(angle)), 32 + radius * math.cos(math.radians(angle))
        assert (y, x_) == pytest.approx(expected, abs=1)


def test_no_corner_is_filled_in_from_outside():
    inside = torch.zeros(1, 1, 64, 64)
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    inside[0, 0] = (y.square() + x.square()).sqrt() < 32
    for turned in rotations(inside, (0, 45, 90)):
        assert turned[..., 1:-1, 1:-1].min() > 0.9


@pytest.mark.parametrize(
    ("angles", "expected"),
    [(90, (0, 90, 180, 270)), (45, tuple(range(0, 360, 45))), (180, (0, 180)), ([90, 270], (90, 270))],
)
def test_rotnet_is_cross_entropy_over_all_angles_of_every_image(angles, expected):
    method, views = make(RotNet, angles=angles), batch()
    reference = momentum_encoder(method)
    out = method(views)
    stacked = torch.cat([*rotations(views.views, expected)])
    logits = reference.head(reference.backbone(stacked))
    targets = torch.tensor([k for k in range(len(expected)) for _ in range(6)])
    assert method.angles == expected
    torch.testing.assert_close(out["loss"].detach(), cross_entropy(logits, targets))
    assert out["rotation_accuracy"] == (logits.argmax(1) == targets).float().mean()


@pytest.mark.parametrize("angles", [30, [90], [90, 90], [0, 360], [10, 20]])
def test_other_angles_are_refused(angles):
    with pytest.raises(ValidationError):
        RotNet.Config(angles=angles)


def test_rotnet_learns_which_side_is_up():
    upright = torch.linspace(-1, 1, 32)[:, None].expand(3, 32, 32) + 0.1 * images(6)
    views = Batch([upright], torch.arange(6))
    assert train(make(RotNet), views, steps=30, lr=0.01)["rotation_accuracy"] == 1


# --- tiles ---


def test_tiles_without_gap_are_the_cells():
    x = images(2, 36)
    cut = tiles(x, 12, 0)
    for number, (row, column) in enumerate((r, c) for r in range(3) for c in range(3)):
        assert torch.equal(cut[:, number], x[:, :, 12 * row : 12 * row + 12, 12 * column : 12 * column + 12])


def test_tiles_lie_anywhere_in_their_cells():
    y, x = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    places = torch.stack([y, x, 0 * x]).expand(400, -1, -1, -1)
    cut = tiles(places, 8, 3, torch.Generator().manual_seed(0))
    assert torch.equal(cut[..., -1, -1] - cut[..., 0, 0], torch.tensor([7.0, 7, 0]).expand(400, 9, 3))
    top, left = cut[:, :, 0, 0, 0].unflatten(1, (3, 3)), cut[:, :, 1, 0, 0].unflatten(1, (3, 3))
    for cell in range(3):
        for seen in (top[:, cell], left[:, :, cell]):
            assert seen.unique().tolist() == [11 * cell + k for k in range(4)]
            assert (seen == 11 * cell).float().mean() == pytest.approx(1 / 4, abs=0.05)
    assert not torch.equal(top, left)
    gaps = top[:, 1] - top[:, 0] - 8
    assert gaps.mean() == pytest.approx(3, abs=0.2)


def test_tiles_are_resized_and_decided_by_the_generator():
    x = images(2)
    first, second = (tiles(x, 16, 2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == (2, 9, 3, 16, 16)
    assert torch.equal(first, second)
    assert not torch.equal(first, tiles(x, 16, 2, torch.Generator().manual_seed(4)))
    assert first.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_sizes_of_tiles_and_gaps():
    assert [tile_size(s) for s in (32, 64, 96, 224, 225)] == [16, 24, 32, 64, 64]
    assert [gap_size(s) for s in (16, 32, 96, 224, 225)] == [1, 2, 5, 11, 11]


def test_a_gap_as_wide_as_a_cell_is_the_users_mistake():
    with pytest.raises(UserError, match="smaller gap"):
        tiles(images(2), 8, 10)


# --- jigsaw ---


def slow_permutations(count: int, length: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """Algorithm 1 with the first of equally distant orders; and the sums of distances it reached."""
    rest = list(permutations(range(length)))
    chosen, sums = [rest.pop(0)], []
    while len(chosen) < count:
        distances = [sum(sum(a != b for a, b in zip(p, q)) for q in chosen) for p in rest]
        sums.append(max(distances))
        chosen.append(rest.pop(distances.index(max(distances))))
    return chosen, sums


def hamming(orders: np.ndarray) -> np.ndarray:
    return np.array([(p != q).sum() for p, q in combinations(orders, 2)])


@pytest.mark.parametrize(("count", "length"), [(4, 4), (24, 4), (30, 5)])
def test_every_order_is_as_far_from_the_chosen_as_any_left(count, length):
    orders = [tuple(p) for p in distant_permutations(count, length)]
    assert orders[0] == tuple(range(length))
    assert len(set(orders)) == count
    for k in range(1, count):
        sums = {
            p: sum(sum(a != b for a, b in zip(p, q)) for q in orders[:k])
            for p in permutations(range(length))
            if p not in orders[:k]
        }
        assert sums[orders[k]] == max(sums.values())
    assert hamming(np.array(orders[:length])).mean() == hamming(np.array(slow_permutations(length, length)[0])).mean()


@pytest.mark.parametrize(("count", "mean", "least"), [(10, 8.8, 6), (100, 8.08, 2)])
def test_distances_of_the_set(count, mean, least):
    orders = distant_permutations(count)
    distances = hamming(orders)
    assert distances.mean() == pytest.approx(mean, abs=0.005)
    assert distances.min() >= least
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(9), (count, 1)))


def test_more_orders_than_there_are():
    with pytest.raises(ValueError, match="24 orders of 4 things, not 25"):
        distant_permutations(25, 4)


def test_jigsaw_is_cross_entropy_over_orders():
    method, views = make(Jigsaw, grayscale=0.0, **SMALL), batch()
    reference = momentum_encoder(method)
    torch.manual_seed(5)
    out = method(views)
    torch.manual_seed(5)
    which = torch.randint(6, (6,))
    torch.rand(6)
    cut = standardised(tiles(views.views, 16, 2))
    laid = torch.stack([torch.stack([cut[n, p] for p in method.permutations[k]]) for n, k in enumerate(which)])
    features = torch.cat([reference.tile_head(reference.backbone(laid.flatten(0, 1))).unflatten(0, (6, 9))])
    logits = reference.head(features.reshape(6, 72))
    torch.testing.assert_close(out["loss"].detach(), cross_entropy(logits, which))
    assert out["jigsaw_accuracy"] == (logits.argmax(1) == which).float().mean()


def test_a_tile_passes_the_backbone_alone():
    method = make(Jigsaw, **SMALL).eval()
    seen = []
    method.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    method(batch())
    assert seen == [(54, 3, 16, 16)]


@pytest.mark.parametrize("backbone", ["timm:test_vit_relpos", TinyBackbone])
def test_tiles_that_the_backbone_cannot_take_are_the_users_mistake(backbone):
    net = create_backbone(backbone, 96) if isinstance(backbone, str) else backbone()
    with pytest.raises(UserError, match=r"tiles of 8 px .*use another tile size"):
        Jigsaw(Jigsaw.Config(tile=8, **SMALL), net, INFO)


def test_tiles_lose_their_brightness_and_contrast():
    pieces = torch.randn(2, 9, 3, 8, 8) * (torch.rand(2, 9, 3, 1, 1) + 0.2) + torch.randn(2, 9, 3, 1, 1)
    done = standardised(pieces)
    torch.testing.assert_close(done.mean((-2, -1)), torch.zeros(2, 9, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(done.std((-2, -1), correction=0), torch.ones(2, 9, 3), atol=0.05, rtol=0)
    torch.testing.assert_close(standardised(3 * pieces + 7), done, atol=0.05, rtol=0)
    assert standardised(torch.full((1, 1, 3, 8, 8), 5.0)).abs().max() < 1e-3


def test_grey_views_show_their_luma():
    rgb = torch.rand(4, 3, 8, 8)
    mean, std = torch.tensor(INFO.mean).view(3, 1, 1), torch.tensor(INFO.std).view(3, 1, 1)
    views = (rgb - mean) / std
    chosen = torch.tensor([True, False, True, False])
    grey = in_grey(views, chosen, INFO.std)
    luma = (rgb * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(standardised(grey[::2]), standardised(luma[::2]), atol=1e-2, rtol=0)
    assert torch.equal(grey[1::2], views[1::2])


def test_jigsaw_greys_the_share_it_says():
    method = make(Jigsaw, grayscale=0.3, **SMALL).eval()
    seen = []
    method.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    torch.manual_seed(0)
    for _ in range(20):
        method(batch(20))
    colourless = [(x[:, 0] - x[:, 1]).abs().amax((1, 2)).unflatten(0, (20, 9)).amax(1) < 1e-4 for x in seen]
    assert torch.cat(colourless).float().mean() == pytest.approx(0.3, abs=0.08)


def test_jigsaw_learns_to_lay_a_picture():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    picture = torch.stack([(9 * x * y).sin(), (5 * x + 2 * y.square()).cos(), (7 * y - x).sin()])
    views = Batch([picture.expand(24, -1, -1, -1)], torch.arange(24))
    out = train(make(Jigsaw, grayscale=0.0, gap=0, **SMALL), views, steps=40, lr=0.003)
    assert out["jigsaw_accuracy"] > 0.8


# --- the references ---


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("views", [1, 2])
def test_supervised_is_the_mean_over_labelled_images(smoothing, views):
    method = make(Supervised, label_smoothing=smoothing).eval()
    labels = [0, -1, 2, 1, -1, 2]
    given = batch(6, labels, views)
    out = method(given)
    logits = method.head(method.backbone(given.views))
    rows = [(logits[v * 6 + n], label) for v in range(views) for n, label in enumerate(labels) if label >= 0]
    targets = [(1 - smoothing) * nn.functional.one_hot(torch.tensor(k), 3) + smoothing / 3 for _, k in rows]
    slow = sum(-(target * row.log_softmax(0)).sum() for (row, _), target in zip(rows, targets)) / len(rows)
    torch.testing.assert_close(out["loss"], slow)
    assert out["accuracy"] == pytest.approx(sum(row.argmax() == k for row, k in rows).item() / len(rows))
    assert out["labelled"] == pytest.approx(4 / 6)


def test_supervised_without_a_single_label_has_no_loss_and_no_gradient():
    method = make(Supervised)
    out = method(batch(2, [-1, -1]))
    out["loss"].backward()
    assert (out["loss"], out["accuracy"], out["labelled"]) == (0, 0, 0)
    assert all((p.grad == 0).all() for p in method.parameters())


def test_supervised_needs_classes_and_labels():
    with pytest.raises(UserError, match="no classes"):
        Supervised(Supervised.Config(), TinyBackbone(), RunInfo(images=4, classes=0, image_size=32))
    with pytest.raises(UserError, match="the batch has none"):
        make(Supervised)(batch(2))


@pytest.mark.parametrize("calibrate", [False, True])
def test_random_trains_nothing_and_calibrates_batch_norm_on_demand(calibrate):
    method = make(RandomInit, calibrate=calibrate)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    assert [name for name, p in method.named_parameters() if p.requires_grad] == ["unused"]
    train(method, batch(), steps=3, lr=0.1)
    changed = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    statistics = {f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == (statistics if calibrate else set())


@pytest.mark.parametrize(
    ("method_class", "options"),
    [
        (RotNet, {}),
        (RotNet, {"angles": 45}),
        (RotNet, {"angles": [90, 270]}),
        (Jigsaw, SMALL),
        (Jigsaw, {**SMALL, "tile": 24, "gap": 0, "grayscale": 1.0}),
        (Supervised, {"label_smoothing": 0.1}),
        (RandomInit, {"calibrate": True}),
    ],
)
def test_contract(method_class, options):
    check_method(method_class, **options)


@pytest.mark.parametrize("method_class", [RotNet, Jigsaw])
def test_contract_with_tokens(method_class):
    check_method(method_class, backbone="timm:test_vit2", **(SMALL if method_class is Jigsaw else {}))
