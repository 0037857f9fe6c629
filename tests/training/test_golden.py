"""Golden runs: losses and results equal those of slow loops in plain torch that know no engine and no evaluators."""

import pytest
import torch
from helpers.reference_evaluation import features_one_by_one, knn_classes, linear_classes, top_accuracies
from helpers.reference_training import reference_training
from helpers.small_methods import FEW_CROPS, NEEDS, OPTIONS
from safetensors.torch import load_file

import sslkit as library
from sslkit import plugins
from sslkit.data import open_stores
from sslkit.runs.run import Run
from sslkit.training.meter import Meter


@pytest.mark.parametrize("method", plugins.names("methods"))
def test_five_losses_and_the_weights_after_them_are_those_of_the_slow_loop(method, tmp_path, monkeypatch):
    # One image more than a batch, so that the order decides which one an epoch leaves out.
    run, losses = run_with_losses(method, tmp_path, monkeypatch, images=5, epochs=5)
    assert len(losses) == 5
    same_as_slow_loop(run, losses)


def test_the_same_with_warm_up_and_several_steps_an_epoch(tmp_path, monkeypatch):
    run, losses = run_with_losses("byol", tmp_path, monkeypatch, images=9, epochs=10)
    assert len(losses) == 20
    same_as_slow_loop(run, losses)


def run_with_losses(method, folder, monkeypatch, images, epochs):
    """A run in batches of four, and its losses as they were: metrics.jsonl rounds them."""
    losses = []

    def recorded(meter, step, scalars, images):
        losses.append(scalars["loss"].item())
        add(meter, step, scalars, images)

    add = Meter.add
    monkeypatch.setattr(Meter, "add", recorded)
    run = library.run(
        method={"name": method, **OPTIONS.get(method, {})},
        backbone={"name": "vit_tiny"} if method in NEEDS else {"name": "shufflenetv2", "stem": "imagenet"},
        augment=FEW_CROPS.get(method, plugins.find("methods", method).augment),
        data={"name": "shapes", "n_train": images, "n_test": 2, "image_size": 32},
        batch_size=4,
        drop_last=True,
        epochs=epochs,
        evaluators=[],
        seed=3,
        device="cpu",
        report=False,
        out=folder / "run",
        quiet=True,
    )
    return run, losses


def same_as_slow_loop(run: Run, losses):
    expected, trained = reference_training(run.config)
    assert losses == expected
    weights, saved = trained.state_dict(), load_file(run.checkpoints[-1] / "model.safetensors")
    assert saved.keys() == weights.keys()
    assert [name for name in weights if not torch.equal(saved[name], weights[name])] == []


def test_knn_and_linear_probe_give_what_slow_ones_give(tmp_path):
    run = library.run(
        # Without batch norm, whose statistics one epoch leaves so that all features are nearly the same.
        backbone={"name": "squeezenet", "stem": "imagenet"},
        data={"name": "shapes", "n_train": 100, "n_test": 60, "image_size": 32},
        method={"name": "supervised"},
        optimizer={"lr": 0.01},
        batch_size=20,
        epochs=1,
        evaluators=[{"name": "knn", "k": 7}, {"name": "linear", "epochs": 10, "batch_size": 32}],
        eval_every=0,
        seed=3,
        device="cpu",
        report=False,
        out=tmp_path / "run",
        quiet=True,
    )
    stores = open_stores(run.config.data, None, run.config.seed)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (stores.mean, stores.std))
    train_x, train_y = features_one_by_one(run.backbone(), stores.train, mean, std)
    test_x, test_y = features_one_by_one(run.backbone(), stores.test, mean, std)
    slow = {
        "knn": knn_classes(train_x, train_y, test_x, 10, k=7, temperature=0.1),
        "linear": linear_classes(train_x, train_y, test_x, 10, seed=3, epochs=10, batch=32, lr=0.1),
    }
    found = {record["evaluator"]: record for record in run.evaluations if record["epoch"] == 1}
    for name, ranking in slow.items():
        expected = top_accuracies(ranking, test_y)
        assert {key: found[name][key] for key in expected} == pytest.approx(expected, abs=1e-12)
