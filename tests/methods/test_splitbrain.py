"""Split-brain: the network of two halves, its file, and the loss against the formulas written out."""

import math

import pytest
import torch
from torch import nn

from sslkit.backbones import BackboneConfig, create_backbone, load_backbone, save_backbone
from sslkit.backbones.splitnet import SplitNet
from sslkit.config.base import Choice
from sslkit.errors import UserError
from sslkit.methods import Batch, RunInfo, SplitBrain
from sslkit.methods.splitbrain import Predictor, classified, rebalancing, shares
from sslkit.nn.colour import ab_bins, rgb_to_lab
from sslkit.testing import TinyBackbone, check_backbone, check_method, steps_on

MEAN, STD = (0.1, 0.5, 0.4), (0.2, 0.3, 0.25)
INFO = RunInfo(images=100, classes=0, image_size=32, mean=MEAN, std=STD)


def photos(count: int = 4, size: int = 32) -> torch.Tensor:
    """RGB in 0..1, smooth."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def normalised(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def make(**options: object) -> SplitBrain:
    torch.manual_seed(0)
    return SplitBrain(SplitBrain.Config(**options), TinyBackbone(), INFO)


def batch(images: int = 4) -> Batch:
    return Batch([normalised(photos(images))], torch.arange(images))


# --- the network ---


def test_halves_see_lightness_and_colour_alone():
    net = SplitNet(TinyBackbone()).eval()
    net.normalise_by(MEAN, STD)
    lab = rgb_to_lab(photos())
    features = net(normalised(photos()))
    torch.testing.assert_close(features[:, :16], net.lightness(lab[:, :1] / 50 - 1))
    torch.testing.assert_close(features[:, 16:], net.colour(lab[:, 1:] / 110))
    assert (net.width, net.lightness[0].in_channels, net.colour[0].in_channels) == (32, 1, 2)


def test_inputs_are_about_unit_range():
    net = SplitNet(TinyBackbone())
    for inputs in net.inputs(rgb_to_lab(torch.rand(2, 3, 50, 50).round())):
        assert inputs.abs().max() <= 1
        assert inputs.abs().max() > 0.8


def test_narrowed_stems_keep_the_variance_of_activations():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 2000, 3, bias=False))
    plain.width = 2000
    images = torch.randn(4, 3, 12, 12)
    expected = plain(images).var()
    net = SplitNet(plain)
    torch.testing.assert_close(net.lightness(images[:, :1]).var(), expected, rtol=0.1, atol=0)
    torch.testing.assert_close(net.colour(images[:, :2]).var(), expected, rtol=0.1, atol=0)


def test_halves_share_no_weights():
    net = SplitNet(TinyBackbone())
    ours = {p.data_ptr() for p in net.lightness.parameters()}
    assert not ours & {p.data_ptr() for p in net.colour.parameters()}


def test_all_parallel_stems_are_narrowed():
    net = create_backbone("splitbrain:timm:repvgg_a0", 32)
    assert net(normalised(photos(2))).shape == (2, 2 * 1280)


def test_a_network_without_a_convolution_of_three_channels_cannot_be_split():
    with pytest.raises(UserError, match="cannot be split"):
        SplitNet(nn.Flatten())


@pytest.mark.parametrize("name", ["shufflenetv2", "timm:test_resnet"])
@pytest.mark.parametrize("size", [32, 96])
def test_the_stem_is_fitted_once(name, size):
    plain, net = create_backbone(name, size), create_backbone(f"splitbrain:{name}", size)
    assert net.stem_kind == plain.stem_kind == ("small" if size == 32 else "imagenet")
    assert net.width == 2 * plain.width
    mine = {k: v.shape for k, v in net.lightness.state_dict().items()}
    theirs = {k: v.shape for k, v in plain.state_dict().items()}
    assert mine.keys() == theirs.keys()
    assert sum(mine[k] != theirs[k] for k in mine) == 1


@pytest.mark.parametrize("name", ["squeezenet", "vit"])
def test_a_split_backbone_goes_through_its_file(name, tmp_path):
    options = {"depth": 2, "heads": 2, "dim": 16} if name == "vit" else {}
    net = create_backbone(f"splitbrain:{name}", 32, **options).eval()
    net.normalise_by(MEAN, STD)
    path = tmp_path / "split.safetensors"
    config = {"backbone": {"name": name, "stem": "auto", "pretrained": "gone.safetensors", **options}}
    save_backbone(net, path, name=f"splitbrain:{name}", image_size=32, mean=MEAN, std=STD, config=config)
    loaded = load_backbone(path)
    images = normalised(photos(2))
    assert torch.equal(loaded(images), net(images))
    assert (loaded.name, loaded.mean) == (f"splitbrain:{name}", MEAN)
    again = create_backbone(f"splitbrain:{name}", 32, pretrained=path, **options).eval()
    assert torch.equal(again(images), net(images))


def test_unknown_options_reach_the_backbone_that_is_split():
    with pytest.raises(UserError, match=r"backbone squeezenet: depth"):
        create_backbone("splitbrain:squeezenet", 32, depth=3)


def test_contract_of_the_network():
    check_backbone("splitbrain:timm:test_resnet")


# --- the method ---


def test_the_method_asks_for_the_split_backbone():
    options = BackboneConfig(stem="small")
    choice = SplitBrain.trained_backbone(Choice(name="resnet18", options=options))
    assert choice == Choice(name="splitbrain:resnet18", options=options)
    assert SplitBrain.trained_backbone(choice) is choice


def test_loss_is_both_cross_entropies_against_the_binned_means():
    method, images = make().eval(), photos()
    out = method(batch())
    lab = rgb_to_lab(images)
    bins, total = ab_bins(), {"colour": 0.0, "lightness": 0.0}
    last = nn.Sequential(*[*method.backbone.lightness][:4])(lab[:, :1] / 50 - 1)
    colours = method.to_colour(last, method.backbone.lightness(lab[:, :1] / 50 - 1))
    last = nn.Sequential(*[*method.backbone.colour][:4])(lab[:, 1:] / 110)
    lights = method.to_lightness(last, method.backbone.colour(lab[:, 1:] / 110))
    assert colours.shape == (4, 313, 6, 6)
    assert lights.shape == (4, 50, 6, 6)
    seen = nn.functional.adaptive_avg_pool2d(lab, 6)
    for n in range(4):
        for y in range(6):
            for x in range(6):
                nearest = (bins - seen[n, 1:, y, x]).square().sum(1).argmin()
                total["colour"] -= colours[n, :, y, x].log_softmax(0)[nearest]
                total["lightness"] -= lights[n, :, y, x].log_softmax(0)[int(seen[n, 0, y, x] // 2)]
    mine = [out["colour_loss"], out["lightness_loss"], out["loss"].detach()]
    slow = [t.detach() / (4 * 36) for t in (*total.values(), sum(total.values()))]
    torch.testing.assert_close(mine, slow)


@pytest.mark.parametrize(
    ("map_side", "side", "grid"), [(4, 4, 4), (3, 12, 12), (5, 12, 15), (8, 4, 4), (1, 4, 4), (7, 3, 3)]
)
def test_predictions_are_at_least_as_fine_as_asked(map_side, side, grid):
    predictor = Predictor(6, 10, 5, map_side, side)
    assert predictor(torch.randn(2, 6, map_side, map_side), torch.randn(2, 10)).shape == (2, 5, grid, grid)


def test_a_position_of_a_coarse_map_predicts_its_own_square():
    predictor = Predictor(6, 10, 5, 3, 6)
    last, features = torch.randn(1, 6, 3, 3), torch.randn(1, 10)
    before = predictor(last, features)
    last[:, :, 1, 2] += 1
    changed = (predictor(last, features) != before).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_features_predict_for_all_positions_alike():
    predictor = Predictor(6, 10, 5, 3, 6)
    last, features = torch.randn(1, 6, 3, 3), torch.randn(1, 10)
    difference = predictor(last, features) - predictor(last, 0 * features)
    torch.testing.assert_close(difference, predictor.whole(features)[:, :, None, None].expand(1, 5, 6, 6))


def test_weighted_cross_entropy_value_and_gradient():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    bins = torch.randint(5, (18,), generator=generator)
    weights = torch.rand(5, generator=generator, dtype=torch.float64)
    rows = [scores[n, :, y, x] for n in range(2) for y in range(3) for x in range(3)]
    slow = sum(-weights[k] * (row[k] - row.exp().sum().log()) for row, k in zip(rows, bins)) / 18
    loss, accuracy = classified(scores, bins, weights)
    gradients = [torch.autograd.grad(value, scores)[0] for value in (loss, slow)]
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(*gradients)
    assert accuracy == sum(row.argmax() == k for row, k in zip(rows, bins)) / 18
    assert classified(scores.detach().bfloat16(), bins)[0].dtype == torch.float32


def test_rebalancing_is_equation_4():
    p = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
    raw = [1 / (0.5 * share + 0.5 / 4) for share in p.tolist()]
    expected = torch.tensor(raw, dtype=torch.float64) / sum(share * w for share, w in zip(p.tolist(), raw))
    torch.testing.assert_close(rebalancing(p), expected)
    torch.testing.assert_close(rebalancing(torch.full((313,), 1 / 313)), torch.ones(313))


def test_frequencies_follow_what_was_seen():
    method = make(rebalance=True).train()
    before = method.frequency.clone()
    method(batch(2))
    method(batch(4))
    seen = [method.backbone.lab(batch(n).views) for n in (2, 4)]
    seen = [nn.functional.adaptive_avg_pool2d(lab, 6)[:, 1:].movedim(1, -1).flatten(0, 2) for lab in seen]
    counted = [torch.cdist(ab, ab_bins()).argmin(1).bincount(minlength=313) / len(ab) for ab in seen]
    assert torch.equal(method.frequency, before)
    method.after_step(0.5)
    torch.testing.assert_close(method.frequency, 0.99 * before + 0.01 * sum(counted) / 2)
    now = method.frequency.clone()
    method.after_step(0.6)
    assert torch.equal(method.frequency, now)


def test_shares():
    assert shares(torch.tensor([0, 2, 2, 2]), 4).tolist() == [0.25, 0, 0.75, 0]


def test_a_new_method_guesses():
    out = make()(batch())
    assert out["colour_loss"].item() == pytest.approx(math.log(313), rel=0.2)
    assert out["lightness_loss"].item() == pytest.approx(math.log(50), rel=0.2)


def test_it_learns_to_paint_its_batch():
    method = make(rebalance=True)
    _, out = steps_on(batch(), method, torch.optim.Adam(method.parameters(), 0.02), 60)
    assert out["colour_accuracy"] > 0.8
    assert out["lightness_accuracy"] > 0.5


@pytest.mark.parametrize("name", ["shufflenetv2", "resnet18", "vit_tiny", "squeezenet", "mobilenetv3_small"])
def test_contract_with_real_backbones(name):
    check_method(SplitBrain, backbone=f"splitbrain:{name}")


def test_contract_with_rebalancing():
    check_method(SplitBrain, backbone="splitbrain:timm:test_resnet", rebalance=True, stride=4)


@pytest.mark.parametrize("name", ["shufflenetv2", "squeezenet", "vit_tiny"])
def test_96_px(name):
    net = create_backbone(f"splitbrain:{name}", 96)
    method = SplitBrain(SplitBrain.Config(), net, RunInfo(images=8, classes=0, image_size=96))
    out = method(Batch([torch.randn(2, 3, 96, 96)], torch.arange(2)))
    out["loss"].backward()
    assert out["loss"].isfinite()
