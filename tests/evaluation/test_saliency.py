"""Saliency: maps against captum, finite differences and closed forms, for convolutions and for transformers."""

import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from helpers.labelled_images import subject_of
from PIL import Image
from torch import nn

from sslkit import testing
from sslkit.backbones import create_backbone
from sslkit.data import ArrayImages, pack
from sslkit.errors import UserError
from sslkit.evaluation.drawing import pictures
from sslkit.evaluation.evaluators.saliency import (
    Saliency,
    _map_and_slopes,
    cam_layer,
    extremes,
    grad_cam,
    gradient,
    smooth_gradient,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def views(n=2, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def scorer_of(backbone, classes=5):
    torch.manual_seed(1)
    return nn.Sequential(backbone, nn.Linear(backbone.width, classes)).eval()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return create_backbone("resnet18", 32).eval()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return create_backbone("vit_tiny", 32).eval()


def test_contract():
    testing.check_evaluator(Saliency)


def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 3)).double()
    x, labels = views(2, 6).double(), torch.tensor([2, 0])
    got = gradient(net, x, labels)
    slopes = torch.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = torch.zeros_like(x)
        step[place] = 1e-5
        up, down = (net(x + sign * step)[place[0], labels[place[0]]].item() for sign in (1, -1))
        slopes[place] = (up - down) / 2e-5
    torch.testing.assert_close(got, slopes.abs().amax(1), atol=1e-8, rtol=1e-5)


def test_the_mean_of_noisy_gradients_of_a_linear_score_is_its_gradient():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 4))
    x, labels = views(3, 6), torch.tensor([1, 3, 0])
    smooth = smooth_gradient(net, x, labels, samples=4, noise=0.2, seed=0)
    torch.testing.assert_close(smooth, gradient(net, x, labels))


def test_smooth_gradient_averages_over_noise_of_the_images_range():
    """The gradient of Σx²/2 is x, so the mean over noisy copies is x + the noise's mean."""

    class Squares(nn.Module):
        def forward(self, x):
            return x.square().flatten(1).sum(1, keepdim=True) / 2

    x = torch.zeros(1, 3, 64, 64)
    x[:, :, :1] = 10
    got = smooth_gradient(Squares(), x, torch.tensor([0]), samples=16, noise=0.2, seed=0)
    # Of noise 0.2·10/√16 = 0.5 the largest modulus of three channels is 1.326·0.5 on average.
    assert got[:, 1:].mean().item() == pytest.approx(0.663, rel=0.03)
    state = torch.get_rng_state()
    again, other = (smooth_gradient(Squares(), x, torch.tensor([0]), 16, 0.2, seed) for seed in (0, 1))
    assert torch.equal(got, again)
    assert not torch.equal(got, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("layer", ["layer2", "layer4"])
def test_grad_cam_of_convolutions_is_captums(resnet, layer):
    net, x, labels = scorer_of(resnet), views(), torch.tensor([3, 1])
    cam = LayerGradCam(net, resnet.get_submodule(layer)).attribute(x, target=labels, relu_attributions=True)
    expected = LayerAttribution.interpolate(cam, (32, 32), interpolate_mode="bilinear")[:, 0]
    got = grad_cam(resnet, net, layer, x, labels)
    assert got.max() > 0
    torch.testing.assert_close(got, expected.detach(), atol=1e-6, rtol=1e-4)


def test_grad_cam_of_tokens_is_the_formula_on_their_grid(vit):
    net, x, labels = scorer_of(vit), views(), torch.tensor([3, 1])
    kept = {}
    block = vit.get_submodule("blocks.7")
    handle = block.register_forward_hook(lambda module, inputs, output: kept.update(tokens=output))
    net(x.clone().requires_grad_()).gather(1, labels[:, None]).sum()
    (slopes,) = torch.autograd.grad(net(x.clone().requires_grad_()).gather(1, labels[:, None]).sum(), kept["tokens"])
    handle.remove()
    side = int(kept["tokens"].shape[1] ** 0.5)
    tokens, slopes = (t[:, -side * side :].detach().numpy() for t in (kept["tokens"], slopes))
    expected = np.zeros((2, side, side))
    for n in range(2):
        alpha = slopes[n].mean(0)
        for place in range(side * side):
            expected[n, place // side, place % side] = max(0, (alpha * tokens[n, place]).sum())
    small = torch.from_numpy(expected).float()[:, None]
    large = nn.functional.interpolate(small, (32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(grad_cam(vit, net, "blocks.7", x, labels), large, atol=1e-5, rtol=1e-3)


def test_the_layer_is_the_deepest_that_says_where(resnet, vit):
    one = views(1), torch.tensor([0])
    assert cam_layer(resnet, scorer_of(resnet), *one).startswith("layer4")
    averaged = deepcopy(vit)
    averaged.global_pool = "avg"
    assert cam_layer(averaged, scorer_of(averaged), *one) == "norm"
    coarse = create_backbone("resnet18", 32, stem="imagenet").eval()
    layer = cam_layer(coarse, scorer_of(coarse), *one)
    assert layer.startswith("layer2"), "layer3 has 2×2 positions"


def test_of_a_class_token_the_last_tokens_do_not_count(vit):
    scorer, one = scorer_of(vit), (views(1), torch.tensor([0]))
    assert vit.global_pool == "token"
    assert not _map_and_slopes(vit, scorer, "blocks.11", *one)[1].any()
    layer = cam_layer(vit, scorer, *one)
    assert layer == "blocks.11.norm1"
    assert grad_cam(vit, scorer, layer, *one).max() > 0


def test_a_backbone_without_maps_is_refused():
    class Flat(nn.Module):
        width = 3 * 64

        def __init__(self):
            super().__init__()
            self.flat = nn.Flatten()

        def forward(self, x):
            return self.flat(x)

    net = Flat()
    with pytest.raises(UserError, match="Grad-CAM"):
        cam_layer(net, scorer_of(net), views(1, 8), torch.tensor([0]))


def test_extremes_are_the_surest_hits_and_the_surest_misses():
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7], [0.45, 0.55]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    best, worst = extremes(probabilities, labels, per_class=1, max_classes=5)
    assert (best.tolist(), worst.tolist()) == ([0, 4], [2])
    best, worst = extremes(probabilities, labels, per_class=3, max_classes=1)
    assert (best.tolist(), worst.tolist()) == ([0, 1], [2, 3])


def store(path, n, seed, names):
    """Grey noise with a square whose colour tells the class; the first stands top left, the second top right."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(n) % 3
    pixels = rng.integers(0, 120, (n, 32, 32, 3)).astype(np.uint8)
    for image, c in zip(pixels, labels):
        image[16 * (c // 2) : 16 * (c // 2) + 16, 16 * (c % 2) : 16 * (c % 2) + 16, c] += 130
    return pack(ArrayImages(lambda: (pixels, labels), f"{n} {seed}", names), path, size=32, mode="raw", workers=1)


class Colours(nn.Module):
    """Features that are the channels' means, through an 8×8 grid."""

    width = 3

    def __init__(self):
        super().__init__()
        self.grid = nn.AvgPool2d(4)

    def forward(self, x):
        return self.grid(x).mean((2, 3))


@pytest.fixture
def subject(tmp_path):
    names = ("<script>", "$a_", "🐈" * 300)
    stores = store(tmp_path / "a.beton", 60, 0, names), store(tmp_path / "b.beton", 40, 1, names)
    options = {"image_size": 32, "mean": MEAN, "std": STD, "folder": tmp_path / "run"}
    judged = subject_of(Colours(), *stores, **options)
    judged.begin("saliency")
    return judged


def test_maps_lie_where_the_class_is_visible(subject, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "overlaid", lambda image, heat: drawn.append(heat) or image)
    figures = Saliency(Saliency.Config(samples=5))(subject)
    assert figures["top1"] == 1
    assert len(drawn) == 3 * 3, "a true positive of each class, and no false negative"
    for c, cam in enumerate(drawn[2::3]):
        rows, columns = divmod(c, 2)
        corner = cam[16 * rows : 16 * rows + 16, 16 * columns : 16 * columns + 16]
        assert corner.mean() > 2 * cam.mean()
    assert all(heat.shape == (32, 32) and heat.min() >= 0 for heat in drawn)


@pytest.mark.parametrize("net", ["resnet18", "vit_tiny"])
def test_pictures_are_drawn_and_the_network_stays_as_it_was(subject, net, tmp_path):
    torch.manual_seed(0)
    subject.backbone = create_backbone(net, 32)
    before = {k: v.clone() for k, v in subject.backbone.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Saliency(Saliency.Config(samples=2, max_classes=2, l2=1e4))(subject)
    files = [tmp_path / "run" / file["path"] for file in subject.files]
    assert files
    for file in files:
        with Image.open(file) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    assert subject.backbone.training
    assert all(torch.equal(v, before[k]) for k, v in subject.backbone.state_dict().items())
    assert all(p.grad is None for p in subject.backbone.parameters())
    assert not any(m._forward_hooks for m in subject.backbone.modules())


def test_a_map_lights_up_over_the_grey_image():
    image = np.full((8, 8, 3), 100, np.uint8)
    heat = np.zeros((8, 8))
    heat[:4] = 1
    shown = pictures.overlaid(image, heat).astype(int)
    assert shown[0].sum() > 1.5 * shown[7].sum()
    assert np.ptp(shown[7], axis=1).max() == 0, "without heat it stays grey"
    assert np.isfinite(pictures.overlaid(image, np.zeros((8, 8)))).all()
