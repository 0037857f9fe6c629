"""Fine-tuning with all labels and with few: which images, which steps, and that it learns."""

import math

import numpy as np
import pytest
import torch
from helpers.labelled_images import subject_of
from torch import nn
from torch.nn import functional as F

from sslkit.data import ArrayImages, pack
from sslkit.errors import UserError
from sslkit.evaluation import Finetune, Semi
from sslkit.evaluation.evaluators.finetune import balanced_subset
from sslkit.testing import TinyBackbone

QUICK = {"steps": 40, "batch_size": 32, "lr": 1.0}


# --- which images ---


def test_a_subset_is_balanced_and_reproducible():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 200))
    rows = balanced_subset(labels, 0.1, seed=3)
    assert np.bincount(labels[rows]).tolist() == [20] * 5
    assert (np.diff(rows) > 0).all()
    assert (rows == balanced_subset(labels, 0.1, seed=3)).all()
    assert set(rows) != set(balanced_subset(labels, 0.1, seed=4))
    assert set(balanced_subset(labels, 0.01, seed=3)) < set(rows), "the 1 % are among the 10 %"


def test_every_class_gives_an_image_and_a_small_one_all_it_has():
    labels = np.array([0] * 90 + [1] * 3 + [2] * 7 + [-1] * 50)
    rows = balanced_subset(labels, 0.001, seed=0)
    assert np.bincount(labels[rows]).tolist() == [1, 1, 1]
    rows = balanced_subset(labels, 0.15, seed=0)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 5]
    assert balanced_subset(labels, 1.0, seed=0).max() < 100


# --- training ---


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Three classes that differ in the frequency of their stripes, 90 to train and 60 to test."""
    folder = tmp_path_factory.mktemp("finetune")
    return striped(folder / "train.beton", 90, 0), striped(folder / "test.beton", 60, 1)


def striped(path, n, seed, labels=None):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 if labels is None else labels
    waves = np.sin(np.arange(24) * (np.abs(labels)[:, None] + 0.3) + rng.uniform(0, 6, (n, 1)))
    pixels = 128 + 60 * waves[:, None, :, None] + rng.normal(0, 25, (n, 24, 24, 3))
    images = ArrayImages(lambda: (pixels.clip(0, 255).astype(np.uint8), labels), f"{n} {seed}", ("a", "b", "c"))
    return pack(images, path, size=24, mode="raw")


def subject(stores, net=None, **about):
    about = {"image_size": 24, "mean": (0.5,) * 3, "std": (0.25,) * 3} | about
    return subject_of(net or seeded(TinyBackbone), *stores, initial=TinyBackbone, **about)


def seeded(make):
    torch.manual_seed(0)
    return make()


def test_fine_tuning_learns_and_leaves_the_backbone_alone(stores):
    net = seeded(TinyBackbone)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        figures = Finetune(Finetune.Config(**QUICK, scratch=True))(subject(stores, net))
    assert set(figures) == {"top1", "top5", "scratch_top1", "scratch_top5"}
    assert figures["top1"] > 0.85
    assert figures["scratch_top1"] > 0.85
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert torch.equal(state, torch.get_rng_state())


class Given(nn.Module):
    """Features that tell the class at once, kept or thrown away."""

    width = 3

    def __init__(self, good):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0 if good else 0.0))

    def forward(self, views):
        across = views.mean((1, 2))
        return self.scale * torch.stack([(across.diff(n=k).abs()).mean(1) for k in (1, 2, 3)], 1)


def test_what_was_pre_trained_is_what_is_fine_tuned(stores):
    judged = subject_of(
        Given(True),
        *stores,
        image_size=24,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        initial=lambda: Given(False),
    )
    figures = Semi(Semi.Config(fractions=(0.2,), steps=60, batch_size=18, lr=2.0))(judged)
    assert set(figures) == {"semi_20_top1", "semi_20_top5", "semi_20_scratch_top1", "semi_20_scratch_top5"}
    assert figures["semi_20_top1"] > 0.8
    assert figures["semi_20_scratch_top1"] < 0.5


def test_semi_uses_those_labels_alone(stores, monkeypatch):
    used = []
    inner = Semi._train
    monkeypatch.setattr(
        Semi, "_train", lambda self, net, s, rows, e: used.append((rows, e)) or inner(self, net, s, rows, e)
    )
    evaluator = Semi(Semi.Config(fractions=(0.04, 0.1), steps=1, batch_size=4))
    figures = evaluator(subject(stores, seed=5))
    assert list(figures)[::2] == ["semi_4_top1", "semi_4_scratch_top1", "semi_10_top1", "semi_10_scratch_top1"]
    assert [(len(rows), epochs) for rows, epochs in used] == [(3, 60), (3, 60), (9, 30), (9, 30)]
    assert (used[0][0] == balanced_subset(stores[0].labels, 0.04, 5)).all()
    assert evaluator.protocol.startswith(
        "fine-tuned with 4 % (3), 10 % (9) of the labels, class-balanced, 60, 30 epochs"
    )
    assert "semi_4_scratch_top1" not in Semi(Semi.Config(fractions=(0.04,), steps=1, scratch=False))(subject(stores))


def test_full_batches_hold_every_image_equally_often(stores):
    rows = balanced_subset(stores[0].labels, 0.1, 0)
    config = Semi.Config(batch_size=36)
    seen = [(views.shape, labels) for views, labels in Semi(config)._batches(subject(stores), rows, 3)]
    assert [shape for shape, _ in seen] == [(36, 3, 24, 24)] * 3
    assert all(torch.bincount(labels).tolist() == [12, 12, 12] for _, labels in seen)
    views, _ = next(Semi(config)._batches(subject(stores), rows, 1))
    flat = views.flatten(1)
    assert len(torch.unique(flat, dim=0)) > 30, "cropped and mirrored anew"


@pytest.mark.parametrize(
    ("settings", "images", "steps"),
    [({"min_steps": 5}, 90, 27), ({"min_steps": 100}, 90, 100), ({"steps": 7}, 90, 7), ({"min_steps": 5}, 9, 5)],
)
def test_how_many_steps(stores, settings, images, steps):
    """30 epochs of 90 images in batches of 100 are 27 steps."""
    evaluator = Finetune(Finetune.Config(batch_size=100, **settings))
    net = nn.Sequential(TinyBackbone(), nn.Linear(16, 3))
    evaluator._train(net, subject(stores), np.arange(images), 30)
    assert net[0][1].num_batches_tracked == steps


def test_the_update_is_the_papers(stores):
    """Three steps by hand: learning rate 0.05 · batch/256 along a cosine, Nesterov momentum, no decay."""
    config = Finetune.Config(steps=3, batch_size=64)
    net, twin = (seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(1728, 3))) for _ in range(2))
    judged = subject(stores)
    Finetune(config)._train(net, judged, np.arange(90), 1)
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    for step, (views, labels) in enumerate(Finetune(config)._batches(judged, np.arange(90), 3)):
        lr = 0.05 * 64 / 256 * (1 + math.cos(math.pi * step / 3)) / 2
        gradients = torch.autograd.grad(F.cross_entropy(twin(views), labels), list(twin.parameters()))
        with torch.no_grad():
            for p, v, g in zip(twin.parameters(), velocity, gradients):
                v.mul_(0.9).add_(g)
                p.sub_(lr * (g + 0.9 * v))
    for ours, theirs in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(ours, theirs)


def test_the_seed_decides_all(stores):
    evaluator = Finetune(Finetune.Config(steps=6, batch_size=16))
    outputs = []
    for seed in (1, 1, 2):
        net = seeded(lambda: nn.Sequential(TinyBackbone(), nn.Linear(16, 3)))
        evaluator._train(net, subject(stores, seed=seed), np.arange(90), 1)
        outputs.append(net[1].weight)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    "evaluator", [Finetune(Finetune.Config(**QUICK)), Semi(Semi.Config(**QUICK, fractions=(0.3,)))]
)
def test_test_labels_choose_nothing(stores, tmp_path, evaluator):
    """With every test image called c, top1 is the share predicted as c: shares of one prediction add up to 1."""
    train, test = stores
    called, shares = test.subset(range(60)), []
    for c in range(3):
        called.labels = np.full(60, c)
        figures = evaluator(subject((train, called)))
        shares.append(next(v for k, v in figures.items() if k.endswith("top1")))
    assert sum(shares) == pytest.approx(1)
    assert max(shares) < 0.9


def test_images_without_a_label_are_left_out(tmp_path):
    labels = np.tile([0, 1, 2, -1], 15)
    mixed = striped(tmp_path / "mixed.beton", 60, 2, labels)
    judged = subject((mixed, mixed))
    seen = [y for _, y in Finetune(Finetune.Config(batch_size=45))._batches(judged, np.flatnonzero(labels >= 0), 1)]
    assert torch.bincount(seen[0]).tolist() == [15, 15, 15]
    assert Finetune(Finetune.Config(**QUICK))(judged)["top1"] > 0.8
    bare = mixed.subset(np.flatnonzero(labels < 0))
    for evaluator in (Finetune(Finetune.Config(steps=1)), Semi(Semi.Config(steps=1))):
        with pytest.raises(UserError, match="eval_data="):
            evaluator(subject((bare, mixed)))


def test_divergence_is_reported_with_its_mend(stores):
    with pytest.raises(UserError, match=r"diverged .*lower evaluators.finetune.lr"):
        Finetune(Finetune.Config(steps=30, batch_size=16, lr=1e30))(subject(stores))


def test_protocols_are_in_words():
    how = (
        "whole network, random crop and mirroring; SGD at least 200 steps, batch 256, lr 0.05 cosine, "
        "Nesterov momentum 0.9, weight decay 0"
    )
    assert Finetune(Finetune.Config()).protocol == f"fine-tuned with all labels, 30 epochs: {how}"
    assert Semi(Semi.Config()).protocol == (
        f"fine-tuned with 1 %, 10 % of the labels, class-balanced, 60, 30 epochs: {how}"
    )
