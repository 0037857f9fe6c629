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


@pytest.fixture
def small_foretell(monkeypatch):
    """The script at sizes whose figures mean nothing."""
    foretell = import_module("foretell")
    for name, size in {"EPOCHS": 1, "BATCH": 16, "TRAIN": 48, "VALIDATION": 24}.items():
        monkeypatch.setattr(foretell, name, size)
    return foretell


def test_foretell_goes_on_where_it_was_stopped_and_writes_its_table(shared, small_foretell, tmp_path, monkeypatch):
    foretell, out, page = small_foretell, tmp_path / "out.json", tmp_path / "page.md"
    monkeypatch.setattr(foretell, "SETTINGS", {k: foretell.SETTINGS[k] for k in ("usual", "weak views", "adamw")})
    cifar, real = shared / "cifar-10-batches-bin", foretell.run

    def stopped(settings, folder):
        if "optimizer" in settings:
            raise KeyboardInterrupt
        return real(settings, folder)

    monkeypatch.setattr(foretell, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        foretell.measure(cifar, ["simclr"], out)
    before = json.loads(out.read_text())
    assert list(before["runs"]) == ["random", "simclr, usual", "simclr, weak views"]
    monkeypatch.setattr(foretell, "run", real)
    report = foretell.measure(cifar, ["simclr"], out)
    assert report == json.loads(out.read_text()) | {"correlations": report["correlations"]}
    assert {k: report["runs"][k] for k in before["runs"]} == before["runs"], "what is measured is kept"
    assert len({tuple(one["figures"].values()) for one in report["runs"].values()}) == 4
    assert all(0 <= one["linear"] <= 1 for one in report["runs"].values())
    page.write_text(f"Above\n{foretell.BEGIN}\nold\n{foretell.END}\nBelow\n")
    for _ in range(2):
        foretell.write_table(page, foretell.as_markdown(report))
    text = page.read_text()
    assert text.startswith("Above\n")
    assert text.endswith(f"{foretell.END}\nBelow\n")
    assert "old" not in text
    assert text.count("| RankMe (`rankme`) | higher |") == 1
    monkeypatch.setattr(foretell, "EPOCHS", 3)
    with pytest.raises(SystemExit, match="another protocol"):
        foretell.measure(cifar, ["simclr"], out)


def test_foretell_ranks_by_quality_over_all_and_within_methods():
    foretell = import_module("foretell")

    def one(method, linear, alignment, alpha):
        figures = dict.fromkeys(foretell.LABEL_FREE, 1.0) | {"alignment": alignment, "alpha_req": alpha}
        return {"settings": {"method": {"name": method}}, "linear": linear, "figures": figures}

    # Within each method lower alignment goes with accuracy; the better method has the higher one.
    runs = {f"a{i}": one("a", 0.30 + i / 100, 0.5 - i / 100, 1 + i) for i in range(4)}
    runs |= {f"b{i}": one("b", 0.50 + i / 100, 0.9 - i / 100, 1 - i) for i in range(4)}
    found = foretell.correlations(runs | {"random": one("random", 0.9, 0.0, 1.0)})
    assert found["alignment"]["within"] == {"a": pytest.approx(1), "b": pytest.approx(1)}
    assert found["alignment"]["n"] == 8
    # Over all, qualities have the ranks 5 to 8 and 1 to 4, accuracies 1 to 8: eight differences of 4.
    assert found["alignment"]["spearman"] == pytest.approx(1 - 6 * 128 / (8 * 63))
    assert found["alpha_req"]["within_mean"] == pytest.approx(-1), "farther from 1 is worse on either side"
    assert found["rankme"]["spearman"] is None
    low, high = found["alignment"]["interval"]
    assert -1 < low < found["alignment"]["spearman"] < high < 1


def test_the_table_of_foretell_in_the_docs_is_that_of_its_results():
    foretell = import_module("foretell")
    text = (ROOT / "docs/evaluation.md").read_text()
    shown = text.partition(foretell.BEGIN)[2].partition(foretell.END)[0].strip()
    results = ROOT / "benchmarks/results/foretell-cpu.json"
    expected = foretell.as_markdown(json.loads(results.read_text())).strip() if results.exists() else ""
    assert foretell.BEGIN in text
    assert shown == expected
