"""A run that was stopped goes on as if it had not been: equal weights, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from helpers.forked_command import Forked
from helpers.paths import PYTHONPATH
from safetensors.numpy import load_file

WORDS = [
    "method=byol", "method.hidden=64", "method.dim=16", "backbone=shufflenetv2", "data=shapes", "data.n_train=192",
    "data.n_test=64", "data.image_size=32", "backbone.stem=imagenet", "batch_size=32", "epochs=6", "device=cpu",
    "checkpoint_every=2", "keep_checkpoints.every=2", "eval_every=3", "evaluators=[knn]", "log_every=2",
    "optimizer=lars",
]  # fmt: skip


def by_command_line(folder, *words):
    """The command itself. `Forked` is the same without the seconds of imports, which most tests here are not about."""
    return subprocess.Popen(
        [sys.executable, "-m", "sslkit", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder, *words, start=Forked):
    process = start(folder, *words)
    output = "".join(process.communicate(timeout=240))
    return process.returncode, output


def weights(run):
    """Every tensor of the last checkpoint and of the backbone file, as bytes."""
    last = sorted((run / "checkpoints").iterdir())[-1]
    files = [last / "model.safetensors", last / "optimizer.safetensors", run / "backbone.safetensors"]
    return {(f.name, k): v.tobytes() for f in files for k, v in load_file(f).items()}


def records(run, name):
    """The lines of a log, without what depends on the clock."""
    timed = {"images_per_second", "data_wait", "memory_gib", "seconds"}
    lines = (run / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    status, output = finish(folder, "run", *WORDS, "out=run")
    assert status == 0, output
    return folder / "run"


def same(run, whole):
    assert weights(run) == weights(whole)
    assert records(run, "metrics.jsonl") == records(whole, "metrics.jsonl")
    assert records(run, "evaluations.jsonl") == records(whole, "evaluations.jsonl")


QUICK = [(by_command_line, 0), (Forked, 1)]
"""Kills in the fast tests, one of each kind of process; the rest are marked slow."""
KILLS = [
    pytest.param(start, k, id=f"{name}-{k}", marks=[] if (start, k) in QUICK else pytest.mark.slow)
    for start, name, number in ((by_command_line, "command line", 2), (Forked, "forked", 20))
    for k in range(number)
]


@pytest.mark.parametrize(("start", "number"), KILLS)
def test_kill_at_a_random_moment_then_resume_gives_equal_weights(whole, tmp_path, start, number):
    # By progress, not by the clock: the machine may be twice as busy, or half, as it was for another run.
    whole_lines = len(records(whole, "metrics.jsonl"))
    lines, rest = divmod(random.Random(number).uniform(0, 0.9 * whole_lines), 1)
    process = start(tmp_path, "run", *WORDS, "out=run")
    wait_for((tmp_path / "run/config.yaml").exists, process)
    began, metrics = time.monotonic(), tmp_path / "run/metrics.jsonl"
    wait_for(lambda: not lines or (metrics.exists() and metrics.read_text().count("\n") >= lines), process)
    time.sleep(rest * (time.monotonic() - began) / max(lines, 1))
    process.kill()
    process.communicate()
    status, output = finish(tmp_path, "resume", "run", start=start)
    assert status == 0, output
    same(tmp_path / "run", whole)


SIGNALS = [
    pytest.param(signal.SIGINT, 130, by_command_line, id="SIGINT-command line"),
    pytest.param(signal.SIGTERM, 143, Forked, id="SIGTERM-forked"),
    pytest.param(signal.SIGTERM, 143, by_command_line, id="SIGTERM-command line", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("signum", "status", "start"), SIGNALS)
def test_a_signal_saves_says_where_and_exits(whole, tmp_path, signum, status, start):
    process = start(tmp_path, "run", *WORDS, "out=run")
    metrics = tmp_path / "run/metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 4, process)
    process.send_signal(signum)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == status, output
    assert "sslkit resume run" in output
    assert "Traceback" not in output
    saved = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert saved[-1] in output
    status, output = finish(tmp_path, "resume", "run")
    assert status == 0, output
    assert weights(tmp_path / "run") == weights(whole)
    assert records(tmp_path / "run", "evaluations.jsonl") == records(whole, "evaluations.jsonl")
    # Stopped between two lines, the log has one more: the interval was cut in two.
    lines = {r["step"] for r in records(tmp_path / "run", "metrics.jsonl")}
    assert {r["step"] for r in records(whole, "metrics.jsonl")} <= lines


@pytest.mark.parametrize("damage", ["truncate", "flip", "no state"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(whole, tmp_path, damage):
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    newest = sorted((tmp_path / "run/checkpoints").iterdir())[-1]
    model = newest / "model.safetensors"
    if damage == "truncate":
        model.write_bytes(model.read_bytes()[:-100])
    elif damage == "flip":
        data = bytearray(model.read_bytes())
        data[len(data) // 2] ^= 1
        model.write_bytes(bytes(data))
    else:
        (newest / "state.json").unlink()
    status, output = finish(tmp_path, "resume", "run")
    assert status == 0, output
    assert f"{newest.relative_to(tmp_path)} is damaged" in output
    same(tmp_path / "run", whole)


def test_resume_of_a_finished_run_changes_nothing(whole):
    before = weights(whole)
    status, output = finish(whole.parent, "resume", "run")
    assert status == 0, output
    same_after = weights(whole)
    assert same_after == before


def test_resume_of_no_run_is_a_clear_mistake(tmp_path):
    status, output = finish(tmp_path, "resume", "nothing")
    assert status == 2
    assert "holds no run" in output


def test_checkpoints_are_those_asked_for(whole):
    names = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert names == ["epoch-0002", "epoch-0004", "epoch-0006"]
