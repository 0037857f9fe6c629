"""The benchmark scripts still run: at sizes whose figures mean nothing."""

import json
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import PYTHONPATH, ROOT
from PIL import Image


@pytest.fixture
def scale(tmp_path, monkeypatch):
    """Call the script in this process; it measures each part in one of its own."""
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["scale.py", "--small", "--device", "cpu", "--out", str(tmp_path), *words])
        import_module("scale").main()

    return call


def test_scale_measures_the_parts_asked_for_and_keeps_the_others(scale, tmp_path):
    for parts in ("batch,classes", "packing,knn"):
        scale("--only", parts)
    report = json.loads((tmp_path / "scale-cpu.json").read_text())
    assert list(report["parts"]) == list(report["environment"]) == ["batch", "classes", "packing", "knn"]
    assert [f["n"] for f in report["parts"]["packing"]] == [30, 60]
    rates = {"batch": "images_per_second", "classes": "supervised", "packing": "images_per_second"}
    assert all(found[key] > 0 for part, key in rates.items() for found in report["parts"][part])
    assert all(0 <= found["mb"] < 400 for found in report["parts"]["knn"])
    assert "images per batch" in (tmp_path / "scale-cpu.svg").read_text()


def test_scale_names_a_part_that_is_none(scale, capsys):
    with pytest.raises(SystemExit) as ended:
        scale("--only", "batch,speed")
    assert ended.value.code == 2
    assert "there is no section 'speed'" in capsys.readouterr().err


@pytest.fixture
def few_images(tmp_path) -> Path:
    """train/ and test/ with two classes of noise each."""
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for i in range(count):
            path = tmp_path / "images" / split / f"class {i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return tmp_path / "images"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightly", "sslkit"])
def test_both_peers_train_and_are_timed(name, few_images, monkeypatch):
    pytest.importorskip("lightly", reason="lightly is in the extra bench")
    peers = import_module("peers")
    monkeypatch.setattr(peers, "IMAGES", 32)
    monkeypatch.setattr(peers, "BATCH", 16)
    found = peers.CONTESTANTS[name](few_images, epochs=2, seed=0)
    assert found["epochs"] == 2
    assert found["images_per_second"] > 0


@pytest.mark.slow
def test_executions_are_compared_by_losses_and_accuracy(few_images, monkeypatch):
    agreement = import_module("agreement")
    monkeypatch.setattr(agreement, "BATCH", 8)
    args = Namespace(folder=few_images, epochs=2)
    runs = {
        candidate: [agreement.train(args, agreement.EXECUTIONS[candidate], 0)] for candidate in ("plain", "kernels")
    }
    assert len(runs["plain"][0]["losses"]) == 4
    found = agreement.summary(runs)
    assert found["plain"]["first_loss_differs_by"] == 0
    assert found["kernels"]["first_loss_differs_by"] < 1e-3
    assert 0 < found["kernels"]["losses_of_10_steps_differ_by"] < 0.5, "two candidates, two roundings"
