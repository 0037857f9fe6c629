"""Whole runs, as a user starts them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.forked_command import Forked
from PIL import Image
from safetensors.torch import load_file

import sslkit as library
from sslkit.errors import UserError

TINY = {
    "method": {"name": "simclr", "hidden": 32, "dim": 16},
    "backbone": {"name": "shufflenetv2", "stem": "imagenet"},
    "data": {"name": "shapes", "n_train": 96, "n_test": 48, "image_size": 32},
    "batch_size": 32,
    "epochs": 2,
    "device": "cpu",
    "quiet": True,
}
KNN_ONLY = {"evaluators": ["knn"], "report": False}


def run(tmp_path, **settings):
    return library.run(**{**TINY, **KNN_ONLY, "out": tmp_path / "run", **settings})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with both evaluators."""
    return library.run(**TINY, out=tmp_path_factory.mktemp("finished") / "run", eval_every=1)


def test_the_directory_holds_what_the_design_says(finished):
    names = {p.name for p in finished.path.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "metrics.jsonl", "evaluations.jsonl", "backbone.safetensors", "checkpoints",
        "figures", "report.html", ".lock",
    }  # fmt: skip
    last = finished.metrics[-1]
    expected = {"step", "epoch", "loss", "lr", "images_per_second", "data_wait", "memory_gib", "feature_std"}
    assert expected | {"effective_rank", "seconds"} <= set(last)
    assert last["step"] == 6
    assert last["epoch"] == 2
    assert {(r["epoch"], r["evaluator"]) for r in finished.evaluations} == {
        (epoch, name) for epoch in (0, 1, 2) for name in ("knn", "linear")
    }
    assert all(0 <= r["top1"] <= r["top5"] <= 1 and r["n_test"] == 48 for r in finished.evaluations)
    assert not list(finished.path.rglob("*.pt")) + list(finished.path.rglob("*.pkl"))


def test_origins_and_derived_values_are_kept(finished):
    environment = json.loads((finished.path / "environment.json").read_text())
    assert environment["origins"]["epochs"] == "sslkit.run"
    assert torch.__version__.startswith(environment["versions"]["torch"])
    assert finished.derived["image_size"] == 32
    assert finished.derived["loader"] == "resident"
    assert finished.derived["stem"] == "imagenet"


def test_the_backbone_loads_into_plain_torchvision_with_only_the_classifier_missing(finished):
    import torchvision

    plain = torchvision.models.shufflenet_v2_x1_0()
    missing, unexpected = plain.load_state_dict(load_file(finished.backbone_file), strict=False)
    assert missing == ["fc.weight", "fc.bias"]
    assert unexpected == []
    plain.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(library.load(finished.backbone_file)(images), plain.eval()(images))


def test_the_backbone_loads_into_plain_timm(tmp_path):
    import timm

    done = run(tmp_path, backbone="mobilenetv3_small", epochs=1, evaluators=[])
    plain = timm.create_model("mobilenetv3_small_100")
    missing, unexpected = plain.load_state_dict(load_file(done.backbone_file), strict=False)
    assert missing == ["classifier.weight", "classifier.bias"]
    assert unexpected == []


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tmp_path):
    first, again, other = (
        load_file(run(tmp_path / str(i), epochs=1, evaluators=[], seed=seed).backbone_file)
        for i, seed in enumerate((0, 0, 1))
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_evaluating_changes_no_weight(tmp_path):
    measured = run(tmp_path / "a", eval_every=1)
    blind = run(tmp_path / "b", evaluators=[])
    a, b = load_file(measured.backbone_file), load_file(blind.backbone_file)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert blind.evaluations == []


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"channels_last": False},
        {"accumulate": 2, "optimizer": {"name": "sgd", "lr": 0.1, "clip_grad": 1.0}},
        {"optimizer": {"name": "adamw", "lr": 1e-3, "schedule": "constant"}},
        {"optimizer": {"name": "timm:lamb", "lr": 1e-3}},
        {"loader": "torch", "workers": 1},
    ],
    ids=str,
)
def test_settings_train(tmp_path, settings):
    done = run(tmp_path, epochs=1, **settings)
    assert done.metrics[-1]["loss"] > 0
    assert ("grad_norm" in done.metrics[-1]) == ("clip_grad" in settings.get("optimizer", {}))


def test_the_learning_rate_is_scaled_beside_the_setting(tmp_path):
    optimizer = {"name": "sgd", "lr": 0.4, "lr_scaling": "linear"}
    done = run(tmp_path, accumulate=2, optimizer=optimizer, epochs=1, evaluators=[])
    assert done.derived["peak_lr"] == pytest.approx(0.4 * 64 / 256)
    assert done.config.optimizer.lr == 0.4


def test_a_loss_that_is_not_finite_stops_with_step_checkpoint_and_what_to_try(tmp_path):
    with pytest.raises(UserError, match=r"not finite since step \d+.*last good checkpoint: .*Try a lower optimizer.lr"):
        run(tmp_path, optimizer={"name": "sgd", "lr": 1e30, "lr_scaling": "none"}, epochs=3, log_every=1)
    assert not (tmp_path / "run/backbone.safetensors").exists()


def limit_memory():
    """Leave this process 500 MB more than it has."""
    import resource

    from sslkit.augment import cpu_kernels

    torch.set_num_threads(1)
    cpu_kernels.prepare()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20,) * 2)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_out_of_memory_names_a_batch_that_fits(tmp_path):
    words = ["run", "method=simclr", "backbone=resnet18", "data=shapes", "data.n_train=64", "data.image_size=96"]
    words += ["batch_size=64", "epochs=1", "evaluators=[]", "device=cpu", f"out={tmp_path / 'run'}"]
    errors = Forked(tmp_path, *words, before=limit_memory).communicate(timeout=280)[1]
    last = errors.strip().splitlines()[-1]
    assert "out of memory at batch_size=64 with images of 96 px; micro_batch=" in last
    fits = int(last.split("micro_batch=")[1].split(" ")[0])
    assert 2 <= fits < 64
    assert 64 % fits == 0


def test_a_flat_folder_pre_trains_without_labels_and_evaluates_elsewhere(tmp_path, sslkit):
    for i in range(40):
        path = tmp_path / "photos" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.radial_gradient("L").resize((40, 50)).rotate(9 * i).save(path)
    (tmp_path / "photos/broken.png").write_bytes(b"not a picture")
    words = [
        "run",
        "method=simclr",
        "backbone.stem=imagenet",
        "data=photos",
        "batch_size=16",
        "epochs=1",
        "out=run",
        "data.image_size=32",
        "evaluators=[knn,cost]",
        "evaluators.cost.seconds=0.1",
    ]
    done = sslkit(*words)
    assert done.returncode == 0, done.stderr
    assert "broken.png" in done.stderr
    records = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    assert [(r["evaluator"], r["epoch"], r["split"]) for r in records] == [
        ("cost", 0, "pretrain"),
        ("cost", 1, "pretrain"),
    ], "kNN needs labels, and is left out"
    assert json.loads((tmp_path / "run/environment.json").read_text())["derived"]["skipped"] == 1
    asked = sslkit("evaluate", "../run", "eval_data=digits", "evaluators=[knn]", "--json", cwd=tmp_path / "photos")
    [record] = json.loads(asked.stdout)
    assert record["n_test"] == 360
    unlabelled = sslkit("evaluate", "run", cwd=tmp_path)
    assert unlabelled.returncode == 0
    assert "knn needs them; name labelled images with eval_data=" in unlabelled.stderr


def test_evaluate_repeats_the_run_s_own_figures_and_works_on_the_file(finished, sslkit):
    last = {r["evaluator"]: r["top1"] for r in finished.evaluations if r["epoch"] == 2 and r["during_run"]}
    again = json.loads(sslkit("evaluate", str(finished.path), "--json").stdout)
    assert {r["evaluator"]: r["top1"] for r in again} == last
    words = ["evaluators=[knn]", "evaluators.knn.k=3"]
    [by_file] = json.loads(sslkit("evaluate", str(finished.backbone_file), *words, "--json").stdout)
    assert "k=3" in by_file["protocol"]


def test_evaluate_takes_a_plain_weights_file(tmp_path, sslkit):
    import torchvision
    from safetensors.torch import save_file

    save_file(torchvision.models.shufflenet_v2_x1_0().state_dict(), tmp_path / "plain.safetensors")
    unsaid = sslkit("evaluate", "plain.safetensors")
    assert unsaid.returncode == 2
    assert "backbone=NAME" in unsaid.stderr
    words = ["backbone=shufflenetv2", "data=digits", "evaluators=[knn]"]
    [record] = json.loads(sslkit("evaluate", "plain.safetensors", *words, "--json").stdout)
    assert record["n_test"] == 360


@pytest.mark.parametrize(
    ("path", "words"), [("nothing", "neither a run"), ("text.txt", "cannot be read as safetensors")]
)
def test_evaluate_of_something_else_is_a_clear_mistake(tmp_path, sslkit, path, words):
    (tmp_path / "text.txt").write_text("hello")
    done = sslkit("evaluate", path)
    assert done.returncode == 2
    assert words in done.stderr


def test_plugins_hear_of_the_run(tmp_path):
    from sslkit import hookimpl
    from sslkit.plugins import host

    heard = []

    class Listener:
        @hookimpl
        def run_started(self, run):
            heard.append(("started", run.path.name))

        @hookimpl
        def run_logged(self, run, step, metrics):
            assert all(isinstance(v, int | float) or v is None for v in metrics.values())
            heard.append(("logged", step))

        @hookimpl
        def run_finished(self, run, error):
            heard.append(("finished", error))

    listener = Listener()
    host().manager.register(listener)
    try:
        run(tmp_path, epochs=1)
    finally:
        host().manager.unregister(listener)
    assert heard == [("started", "run"), ("logged", 0), ("logged", 3), ("logged", 3), ("finished", None)]


def test_a_kill_between_the_files_leaves_no_backbone_older_than_the_checkpoint(tmp_path, monkeypatch):
    save, seen = library.Run.save_checkpoint, []

    def checked(self, checkpoint, name, keep):
        backbone = load_file(self.backbone_file)
        seen.append(all(torch.equal(backbone[k], checkpoint.model[f"backbone.{k}"]) for k in backbone))
        return save(self, checkpoint, name, keep)

    monkeypatch.setattr(library.Run, "save_checkpoint", checked)
    run(tmp_path, evaluators=[], checkpoint_every=1)
    assert seen == [True, True]


def test_two_runs_without_a_name_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (library.run(**TINY, **KNN_ONLY) for _ in range(2))
    assert first.path == Path("runs/simclr-shufflenetv2-shapes")
    assert second.path == Path("runs/simclr-shufflenetv2-shapes-2")
