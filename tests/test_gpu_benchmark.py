"""The benchmark for a card runs on the CPU at toy size, loses nothing when it is cut off, and goes on after a death."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from helpers.data_sources import cifar10_files, write_all
from helpers.paths import PYTHONPATH, ROOT

from benchmarks.gpu.agreement import Trace, apart, difference_of, within
from benchmarks.gpu.draws import DrawsOnCPU
from benchmarks.gpu.own_process import in_own_process
from benchmarks.gpu.parts import PARTS
from sslkit import plugins

COMMAND = [str(ROOT / "benchmarks/gpu/run-all"), "--device", "cpu", "--toy", "--minutes", "60"]
ENV = {**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
AUGMENTATIONS = plugins.names("augmentations")

run = partial(subprocess.run, env=ENV, capture_output=True, text=True, timeout=850, check=False)


def items_of(file, part):
    return json.loads(file.read_text())["parts"][part]["items"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_part_runs_and_finds_what_is_expected(tmp_path):
    write_all(tmp_path / "cifar", cifar10_files()[0])
    file = tmp_path / "gpu.json"
    done = run([*COMMAND, "--out", str(file), "--data", str(tmp_path / "cifar"), "--revision", "abc"])
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text())
    assert list(report["parts"]) == [part.name for part in PARTS]
    [call] = report["calls"]
    assert call["settings"] == {"device": "cpu", "toy": True}
    assert call["environment"]["git"] == "abc"
    assert call["command"].startswith("benchmarks/gpu/run-all --device cpu --toy")
    assert {"torch", "sslkit"} <= call["environment"]["versions"].keys()

    agreement = items_of(file, "agreement")
    assert list(agreement) == plugins.names("methods")
    assert all(item["status"] == "done" and item["passed"] for item in agreement.values())
    assert any(item["device_from_float64"] != item["cpu_from_float64"] for item in agreement.values())
    augmentations = items_of(file, "augmentations")
    assert list(augmentations) == AUGMENTATIONS
    assert 0 < augmentations["simclr"]["without_tf32"]["largest"] < 1e-3
    assert items_of(file, "precision")["byol fp16"]["gradient_cosine"] > 0.9
    processes = items_of(file, "processes")
    assert processes["gloo simclr"]["passed"]
    assert processes["gloo simclr"]["unequal_between_processes"] == []
    assert processes["nccl simclr"] | {"status": "skipped"} == processes["nccl simclr"]
    assert items_of(file, "memory")["simclr shufflenetv2"]["batch_size"] == 16
    assert {item["status"] for item in items_of(file, "executions").values()} == {"done", "skipped"}
    cell = items_of(file, "throughput")["simclr-shufflenetv2-32"]
    assert [target["ratio"] for target in cell["targets"]] == ["step/bound"]
    evaluations = items_of(file, "cifar10")["resnet18"]["evaluations"]
    assert [(e["evaluator"], e["epoch"]) for e in evaluations] == [
        ("knn", 0), ("linear", 0), ("knn", 1), ("linear", 1)
    ]  # fmt: skip
    assert all({"chance", "random_init", "raw_pixels"} == e["floors"].keys() for e in evaluations if e["epoch"])


def test_what_is_done_is_not_measured_again(tmp_path):
    file = tmp_path / "gpu.json"
    command = [*COMMAND, "--out", str(file), "--only", "augmentations"]
    assert run(command).returncode == 0
    first = json.loads(file.read_text())
    lost = AUGMENTATIONS[3]
    # As a call leaves it that is cut off: one item was running, and one had not begun.
    items = first["parts"]["augmentations"]["items"]
    cut_off = {**items, lost: {"status": "running", "call": 0, "process": 1}}
    del cut_off[AUGMENTATIONS[-1]]
    file.write_text(json.dumps({**first, "parts": {"augmentations": {"about": "", "items": cut_off}}}))

    assert run(command).returncode == 0
    again = items_of(file, "augmentations")
    anew = {lost, AUGMENTATIONS[-1]}
    assert {name for name, item in again.items() if item["call"] == 1} == anew
    assert {name: again[name] for name in items.keys() - anew} == {name: items[name] for name in items.keys() - anew}
    assert all(again[name]["status"] == "done" for name in anew)


def test_a_part_that_dies_is_recorded_and_the_rest_goes_on(tmp_path):
    file = tmp_path / "gpu.json"
    command = [*COMMAND, "--out", str(file), "--only", "augmentations,cifar10"]
    running = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    victim = first_process(file, running)
    os.kill(victim, signal.SIGKILL)
    out, err = running.communicate(timeout=200)
    assert running.returncode == 1, out + err
    items = items_of(file, "augmentations")
    died = [name for name, item in items.items() if item["status"] == "died"]
    assert len(died) == 1
    assert items[died[0]]["reason"] == "its process was killed by SIGKILL"
    assert items[died[0]]["process"] == victim
    assert [name for name, item in items.items() if item["status"] == "done"] == [
        name for name in AUGMENTATIONS if name not in died
    ]
    assert items_of(file, "cifar10")["resnet18"]["reason"].startswith("needs --data FOLDER")
    assert f"{died[0]}: died (its process was killed by SIGKILL)" in out

    assert run(command).returncode == 0
    assert items_of(file, "augmentations")[died[0]]["status"] == "done"


def test_a_call_that_is_stopped_leaves_no_process_behind(tmp_path):
    file = tmp_path / "gpu.json"
    command = [*COMMAND, "--out", str(file), "--only", "augmentations"]
    running = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    worker = first_process(file, running)
    running.terminate()
    out, err = running.communicate(timeout=100)
    assert running.returncode == 143, out + err
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert "running" in {item["status"] for item in items_of(file, "augmentations").values()}


def first_process(file, running) -> int:
    """The number of the process that measures, as soon as it has begun with an item."""
    end = time.monotonic() + 120
    while time.monotonic() < end and running.poll() is None:
        if file.exists():
            items = json.loads(file.read_text())["parts"].get("augmentations", {}).get("items", {})
            found = [item["process"] for item in items.values() if item["status"] == "running"]
            if found:
                return found[0]
        time.sleep(0.005)
    raise AssertionError(running.communicate())


def test_without_time_everything_is_skipped_and_said(tmp_path):
    file = tmp_path / "gpu.json"
    done = run([*COMMAND, "--out", str(file), "--minutes", "0"])
    assert done.returncode == 0, done.stderr
    parts = json.loads(file.read_text())["parts"]
    assert list(parts) == [part.name for part in PARTS]
    entries = [item for part in parts.values() for item in part["items"].values()]
    assert {(item["status"], item["reason"]) for item in entries} == {("skipped", "no time was left for it")}
    assert "14 skipped" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "agreement,memry"], "'memry' is not a part; did you mean 'memory'?"),
        (["--data", "nowhere"], "nowhere is not a folder; give the one with data_batch_1.bin"),
        (["--out", "other.json"], "holds results of {'device': 'cuda', 'toy': False}"),
        (["--out", "broken.json"], "holds no results of this benchmark; name another --out"),
    ],
)
def test_mistakes_are_named(tmp_path, words, message):
    earlier = {"calls": [{"settings": {"device": "cuda", "toy": False}}], "parts": {}}
    (tmp_path / "other.json").write_text(json.dumps(earlier))
    (tmp_path / "broken.json").write_text("{")
    done = run([*COMMAND, *words], cwd=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_a_process_that_hangs_is_ended_when_its_time_is_up():
    began = time.monotonic()
    ended = in_own_process(time.sleep, 100, until=began + 0.1)
    assert ended == ("timed out", "it had not ended when the time of its part was up")
    assert time.monotonic() - began < 60


def test_the_ending_of_a_process_is_named():
    end = time.monotonic() + 100
    assert in_own_process(time.sleep, 0, until=end) is None
    assert in_own_process(sys.exit, 3, until=end) == ("died", "its process ended with status 3")


def drawn(device):
    torch.manual_seed(0)
    rows = torch.empty(3, device=device).uniform_()
    return rows, torch.rand(4, device=device), torch.randperm(5, device=device), torch.randn(2, 3, device=device)


def test_draws_for_every_device_are_those_of_the_cpu():
    plain = drawn("cpu")
    after = torch.rand(1)
    with DrawsOnCPU():
        for ours, theirs in zip(drawn("cpu"), plain):
            assert torch.equal(ours, theirs)
        # A device without numbers: what it is given cannot be read, but the CPU's generator was asked for it.
        assert {tensor.device.type for tensor in drawn("meta")} == {"meta"}
    assert torch.equal(torch.rand(1), after)


def test_disagreement_is_seen():
    right = {"a": torch.tensor([3.0, 0.0]).double(), "b": torch.tensor([4.0]).double()}
    assert difference_of(right, right) == 0
    assert difference_of({"a": right["a"]}, right) == pytest.approx(4 / 5), "a gradient that is missing counts as zero"
    differences = apart(Trace([2.0, float("nan")], right), Trace([4.0, 1.0], right))
    assert differences["first_loss"] == 0.5
    assert not within(differences, {"second_loss": 1e9}), "what is no number is not within any bound"
    assert within(differences, {"first_loss": 0.5})
