"""The plan of a run: what it counts, what it measures, and that it leaves nothing behind."""

import io
import json
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sslkit as library
from sslkit.config.resolve import resolve
from sslkit.errors import UserError
from sslkit.machine import units
from sslkit.training import plan as planning
from sslkit.training import timed_steps as timing
from sslkit.training.plan import CONTEXT_GIB, plan

WORDS = [
    "method=simclr", "method.hidden=32", "method.dim=16", "backbone=shufflenetv2", "data=shapes", "data.n_train=48",
    "data.n_test=8", "data.image_size=32", "batch_size=16", "epochs=2", "device=cpu", "evaluators=[]", "carbon.tdp=100",
]  # fmt: skip


def replaced(word):
    key = word.partition("=")[0]
    return [w for w in WORDS if w.partition("=")[0] != key] + [word]


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "STEPS", 2)
        yield


@pytest.fixture(scope="module")
def found():
    return plan(resolve(WORDS))


def test_it_counts_what_the_run_then_does(found, tmp_path):
    settings = dict(word.split("=", 1) for word in WORDS if not word.startswith("evaluators"))
    settings |= {k: int(v) for k, v in settings.items() if v.isdigit()}
    run = library.run(**settings, evaluators=[], out=tmp_path / "run", quiet=True)
    assert found.steps == run.metrics[-1]["step"] == 6
    assert found.parameters == run.derived["parameters"]
    assert found.gflops_image == run.derived["gflops"]
    head = 1024 * 32 + 32 * 16 + 2 * 32 + 2 * 16
    assert found.trained == pytest.approx(found.parameters + head, abs=64)


def test_flops_of_the_training_are_three_times_those_of_the_views(found):
    """Forward once; backward for the weights and for the inputs, though not for the pixels."""
    forward = 2 * 16 * found.gflops_image * found.steps / 1e6
    assert 2.7 * forward < found.pflops < 3.05 * forward


@pytest.mark.parametrize("groups", [1, 4])
def test_flops_of_a_convolution_backwards(groups):
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    net = nn.Conv2d(4, 12, 3, groups=groups)
    mapping = {torch.ops.aten.convolution_backward: planning._convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        net(x).sum().backward()
    forward = 2 * 2 * 6 * 6 * 12 * 9 * (4 // groups)
    assert counter.get_total_flops() == 3 * forward


def test_time_and_energy_follow_from_a_step(monkeypatch):
    for module in (planning, timing):
        monkeypatch.setattr(module, "train_step", lambda setup, image_batches, step: time.sleep(0.05))
    slow = plan(resolve(replaced("epochs=200")))
    assert 0.05 <= slow.seconds_step < 0.2
    assert slow.steps == 600
    assert slow.hours == pytest.approx(slow.seconds_step * 600 / 3600)
    assert slow.images_per_second == pytest.approx(16 / slow.seconds_step)
    assert slow.kwh == pytest.approx(slow.hours * 0.1)
    assert slow.kg_co2e == pytest.approx(slow.kwh * 0.475)
    assert "median of 2 real steps" in slow.basis["time"]


def test_the_time_for_trying_is_bounded(monkeypatch):
    steps = []
    for module in (planning, timing):
        monkeypatch.setattr(module, "train_step", lambda setup, image_batches, step: steps.append(step))
    monkeypatch.setattr(planning, "SECONDS", 0.0)
    assert "median of 1 real steps" in plan(resolve(WORDS)).basis["time"]
    assert steps == [0, 1]


def test_a_run_of_one_step_is_planned_with_that_step(monkeypatch):
    steps = []
    for module in (planning, timing):
        monkeypatch.setattr(module, "train_step", lambda setup, image_batches, step: steps.append(step))
    words = [w for w in replaced("epochs=1") if not w.startswith("batch_size")]
    assert plan(resolve([*words, "batch_size=48", "drop_last=true"])).steps == 1
    assert steps == [0, 0, 0], "the last step there is, again"


def test_several_processes_share_the_steps_and_the_batch(found):
    of_two = plan(resolve([*WORDS, "devices=2"]))
    assert of_two.steps == found.steps
    assert of_two.pflops == pytest.approx(found.pflops, rel=0.01)
    assert of_two.memory_gib < found.memory_gib
    assert "one of 2 processes" in of_two.basis["time"]


def test_memory_is_less_in_micro_batches(found):
    small = plan(resolve([*WORDS, "micro_batch=4"]))
    kept, kept_in_pieces = (float(p.basis["memory"].split()[1]) for p in (found, small))
    assert kept_in_pieces < 0.5 * kept
    assert small.memory_gib < found.memory_gib
    assert found.memory_gib > CONTEXT_GIB + kept


@pytest.mark.slow
def test_on_a_cpu_the_peak_is_that_of_a_run(tmp_path):
    """In processes of their own, whose peaks are theirs alone."""
    larger = {"data.image_size": 96, "backbone": "resnet18", "batch_size": 48, "epochs": 1, "report": "false"}
    words = [w for w in WORDS if w.partition("=")[0] not in larger] + [f"{k}={v}" for k, v in larger.items()]
    code = "import sys; from sslkit.config.resolve import resolve; from sslkit.training.plan import plan\n"
    planned = float(alone(code + "print(plan(resolve(sys.argv[1:])).process_gib)", *words))
    code = "import sys; from sslkit.cli.main import main; main()"
    alone(code, "run", *words, f"out={tmp_path / 'run'}")
    metrics = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert planned == pytest.approx(json.loads(metrics[-1])["memory_gib"], rel=0.15)


def alone(code, *words):
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, timeout=240)
    return done.stdout


def test_whether_it_fits_is_the_memory_against_the_card(found, monkeypatch):
    assert found.fits_8gb
    monkeypatch.setattr(planning, "CARD_GIB", 0.5)
    assert not plan(resolve(WORDS)).fits_8gb


def test_no_memory_is_the_run_s_own_mistake(monkeypatch):
    def fail(setup, image_batches, step):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(planning, "train_step", fail)
    with pytest.raises(UserError, match=r"out of memory at batch_size=16.*micro_batch=8 fits"):
        plan(resolve(WORDS))


# --- what autograd keeps ---


class Kept:
    """`_SavedTensors` for these networks alone."""

    def __init__(self, net):
        self.method = net


def peak(net, x):
    kept = planning._SavedTensors(Kept(net))
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        loss = net(x).sum()
    at_most = kept.peak
    loss.backward()
    assert kept._bytes == 0, "the backward pass lets go of all"
    assert kept.peak == at_most
    return at_most


def test_each_tanh_keeps_what_it_gives():
    net = nn.Sequential(nn.Tanh(), nn.Tanh(), nn.Tanh())
    assert peak(net, torch.randn(10, 100, requires_grad=True)) == 3 * 4000


def test_weights_count_not_and_shared_memory_once():
    linear = nn.Linear(100, 7, bias=False)
    assert peak(linear, torch.randn(10, 100)) == 4000
    x = torch.randn(10, 100, requires_grad=True)
    assert peak(lambda_module(lambda x: x[:5] * x[5:] + x[:5].sin()), x) == 4000


def test_pieces_that_are_gone_do_not_add_up():
    kept = planning._SavedTensors(Kept(nn.Identity()))
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        for _ in range(3):
            torch.randn(1000, requires_grad=True).tanh().sum().backward()
    assert kept.peak == 4000


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


# --- the command ---


def test_the_command_writes_nothing(sslkit, tmp_path):
    done = sslkit("run", *WORDS, "--plan", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == set(planning.Plan.__dataclass_fields__)
    assert list(tmp_path.iterdir()) == []


def test_the_table_says_how_each_figure_is_known(found):
    written = io.StringIO()
    Console(width=250, file=written).print(planning.as_table(found))
    text = written.getvalue()
    figures = (units.duration(3600 * found.hours), units.energy(found.kwh), units.emissions(found.kg_co2e))
    for word in ("fits a GPU of 8 GB", *figures, "carbon.tdp", "saved for the backward pass", "median of 2"):
        assert word in text


def test_a_plan_reports_what_it_is_doing():
    said: list[str] = []
    words = ["data=shapes", "data.n_train=16", "data.n_test=8", "data.image_size=32", "batch_size=8", "epochs=1"]
    plan(resolve([*words, "method=simclr", "backbone=squeezenet", "tune=off", "device=cpu"]), said.append)
    assert [line.split(",")[0] for line in said if line.startswith("plan:")] == [
        "plan:     preparing the images and the network of the run",
        "plan:     counting the operations of a step",
    ]
