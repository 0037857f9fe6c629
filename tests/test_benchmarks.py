"""The benchmark scripts still run: at sizes whose figures mean nothing."""

import json
import os
import subprocess
import sys

from conftest import ROOT

SCALE = ROOT / "benchmarks" / "scale.py"


def scale(folder, *words):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SCALE), "--small", "--device", "cpu", "--out", str(folder), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=250, check=False)


def test_scale_measures_the_parts_asked_for_and_keeps_the_others(tmp_path):
    for parts in ("batch,classes", "packing,knn"):
        done = scale(tmp_path, "--only", parts)
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "scale-cpu.json").read_text())
    assert list(report["parts"]) == list(report["environment"]) == ["batch", "classes", "packing", "knn"]
    assert [f["n"] for f in report["parts"]["packing"]] == [30, 60]
    rates = {"batch": "images_per_second", "classes": "supervised", "packing": "images_per_second"}
    assert all(found[key] > 0 for part, key in rates.items() for found in report["parts"][part])
    assert all(0 <= found["mb"] < 400 for found in report["parts"]["knn"])
    assert "images a batch" in (tmp_path / "scale-cpu.svg").read_text()


def test_scale_names_a_part_that_is_none(tmp_path):
    done = scale(tmp_path, "--only", "batch,speed")
    assert done.returncode == 2
    assert "no part 'speed'" in done.stderr
