"""Settings that fit the task: where they come from, what overrides them, and a time budget."""

from typing import ClassVar

import pytest

import sslkit as library
from sslkit import plugins
from sslkit.config.task import Task
from sslkit.errors import UserError
from sslkit.methods import Method, SimCLR
from sslkit.training import auto, budget
from sslkit.training.auto import batch_size_for, epochs_for, micro_batch_for
from sslkit.training.preflight import resolve_new

SHAPES = ["data=shapes", "data.n_test=2", "data.image_size=32", "method=simclr", "device=cpu"]


def test_short_runs_get_settings_of_their_own_with_the_reason_as_origin():
    resolved = resolve_new([*SHAPES, "data.n_train=1000"])
    values, origins = resolved.values, resolved.origins
    assert (values["batch_size"], values["method.temperature"], values["optimizer.name"]) == (64, 0.2, "adamw")
    assert values["augment.crop.scale"] == [0.2, 1.0]
    assert values["augment.blur.p"] == 0.0
    assert origins["batch_size"].startswith("auto: 1,000 images")
    assert "steps are few" in origins["method.temperature"]


def test_what_the_user_sets_stays_and_the_rest_follows_from_it():
    resolved = resolve_new([*SHAPES, "data.n_train=1000", "epochs=4000", "optimizer.lr=0.5"])
    assert resolved.values["optimizer.lr"] == 0.5
    assert resolved.origins["optimizer.lr"] == "command line"
    assert resolved.values["method.temperature"] == 0.5, "64,000 steps are not few"


def test_with_a_recipe_only_what_is_left_to_auto_follows_from_the_task():
    words = ["data=shapes", "data.n_train=600", "batch_size=auto", "recipe=sonawane2021-simclr"]
    resolved = resolve_new(words)
    assert resolved.values["batch_size"] == 64
    assert [key for key, origin in resolved.origins.items() if origin.startswith("auto:")] == ["batch_size"]


@pytest.mark.parametrize(("images", "batch_size"), [(5, 5), (100, 16), (300, 32), (600, 64), (30_000, 128)])
def test_a_batch_leaves_eight_steps_an_epoch_and_is_never_larger_than_the_data(images, batch_size):
    assert batch_size_for(images).value == batch_size


@pytest.mark.parametrize(("gib", "micro_batch"), [(100, None), (8, 64), (3, 16), (0.5, 2)])
def test_a_batch_larger_than_the_free_memory_is_taken_in_micro_batches(monkeypatch, gib, micro_batch):
    monkeypatch.setattr(auto, "free_memory", lambda device: int(gib * 2**30))
    words = [
        "backbone=resnet18",
        "backbone.stem=imagenet",
        "data.image_size=224",
        "data.n_train=1024",
        "batch_size=128",
    ]
    resolved = resolve_new(["data=shapes", "method=simclr", "device=cpu", *words])
    assert resolved.config.micro_batch == micro_batch
    assert f"{gib:.1f} are free" in resolved.origins["micro_batch"]


def test_micro_batches_are_for_one_process_and_for_the_network_that_is_trained(monkeypatch):
    monkeypatch.setattr(auto, "free_memory", lambda device: 2 << 30)
    words = ["data=shapes", "data.image_size=96", "data.n_train=1024", "batch_size=128", "backbone=squeezenet"]
    of_two = resolve_new([*words, "method=simclr", "device=cpu", "devices=2"])
    assert of_two.config.micro_batch is None
    assert "several processes" in of_two.origins["micro_batch"]
    whole, halves = (
        resolve_new([*words, f"method={name}", "augment=weak", "device=cpu"]).origins["micro_batch"]
        for name in ("rotnet", "splitbrain")
    )
    assert whole.split(",")[0] != halves.split(",")[0], "two half networks take less"


def test_micro_batches_divide_the_batch():
    assert [micro_batch_for(96, 1, available) for available in (96, 95, 40, 5)] == [96, 48, 24, 3]


def test_a_small_step_is_not_measured_and_a_setting_stays(monkeypatch):
    monkeypatch.setattr(auto, "free_memory", lambda device: 0)
    assert resolve_new([*SHAPES, "data.n_train=100"]).config.micro_batch is None
    large = [*SHAPES, "data.n_train=1024", "batch_size=512"]
    assert resolve_new([*large, "micro_batch=64"]).config.micro_batch == 64
    assert resolve_new([*large, "micro_batch=auto"]).config.micro_batch is None


def test_fewer_images_are_seen_more_often():
    assert epochs_for(10_000, 128).value == 32
    assert epochs_for(300, 32).value == 250
    assert epochs_for(1_000_000, 128).value == 10


@pytest.mark.parametrize(("steps", "momentum"), [(10, 0.9), (240, 0.95), (2_500, 0.9952), (10**6, 0.996)])
def test_the_momentum_of_a_target_averages_a_twelfth_of_the_run(steps, momentum):
    assert Task(images=steps, image_size=32, batch_size=1, epochs=1).momentum(0.996).value == momentum


@pytest.mark.parametrize("method", plugins.names("methods"))
def test_the_advice_of_every_method_is_valid_for_few_images_and_for_many(method):
    for images in (8, 300, 5_000):
        resolved = resolve_new(["data=shapes", f"data.n_train={images}", "data.image_size=32", f"method={method}"])
        assert resolved.config.batch_size <= images


def test_a_budget_chooses_the_epochs_that_fit(monkeypatch):
    resolved = resolve_new([*SHAPES, "data.n_train=64", "budget=0.5m"])
    assert resolved.config.budget == 30
    assert "a guess" in resolved.origins["epochs"]
    monkeypatch.setattr(budget, "_seconds_per_epoch", lambda resolved, log: 2.0)
    logged = []
    fitted = budget.fit_budget(resolved, logged.append)
    assert fitted.config.epochs == 14, "0.95 of 30 seconds"
    assert fitted.origins["epochs"] == "auto: fits into budget=30s"
    assert fitted.config.budget is None, "config.yaml is a recipe for the same run"
    assert "14 epochs of 2 s fit into 30s" in logged[0]


def test_a_run_with_a_budget_ends_within_it(tmp_path):
    run = library.run(
        method="simclr",
        data={"name": "shapes", "n_train": 64, "n_test": 2, "image_size": 32},
        backbone={"name": "shufflenetv2", "stem": "imagenet"},
        batch_size=32,
        tune="off",
        evaluators=[],
        report=False,
        budget="3s",
        device="cpu",
        out=tmp_path / "run",
        quiet=True,
    )
    assert run.metrics[-1]["epoch"] == run.config.epochs > 2
    assert run.metrics[-1]["seconds"] < 6, "twice the time, for machines whose speed varies"


def test_a_budget_below_one_epoch_or_beside_epochs_is_a_mistake(monkeypatch):
    monkeypatch.setattr(budget, "_seconds_per_epoch", lambda resolved, log: 95.0)
    with pytest.raises(UserError, match=r"budget=1m: one epoch takes about 1.67m"):
        budget.fit_budget(resolve_new([*SHAPES, "budget=60"]), len)
    with pytest.raises(UserError, match="epochs: budget chooses"):
        resolve_new([*SHAPES, "budget=60", "epochs=3"])
    for wrong in ("soon", ".inf", "-5", "1..5m"):
        with pytest.raises(UserError, match="budget: "):
            resolve_new([*SHAPES, f"budget={wrong}"])


def test_a_method_that_declares_nothing_keeps_its_authors_settings():
    class Own(Method):
        defaults: ClassVar = {"optimizer.name": "sgd", "optimizer.lr": 0.05}

    fitted = Own.fitted(Task(images=100, image_size=32, batch_size=10, epochs=1))
    assert {key: advice.value for key, advice in fitted.items()} == Own.defaults
    assert SimCLR.fitted(Task(images=100, image_size=32, batch_size=10, epochs=1)).keys().isdisjoint(SimCLR.defaults)
