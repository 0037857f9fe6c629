"""Processes that train together end with the one that launched them; a silent one is named, and later ends the run."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from helpers.forked_command import Forked
from helpers.launched import wait_for, workers_of

from sslkit.training.watch import Watch

TINY = ["data=shapes", "data.n_train=32", "data.n_test=16", "data.image_size=32", "batch_size=8", "device=cpu"]
LONG = [*TINY, "method=simclr", "backbone=squeezenet", "evaluators=[]", "report=false", "tune=off", "kernels=plain"]
TWO = ["run", *LONG, "epochs=3000", "log_every=1", "checkpoint_every=1", "devices=2", "out=run"]


def lives(folder, *seconds_ago, **of_the_second):
    """Write signs of life: the seconds since the last step of each process, all alive now."""
    now = time.monotonic()
    for rank, ago in enumerate(seconds_ago):
        life = {
            "step_at": now - ago,
            "resting": False,
            "alive_at": now,
            "pid": 2**22 + rank,
            "at": "x.py:1",
            "waits": True,
        }
        life |= of_the_second if rank else {}
        (folder / str(rank)).write_text(json.dumps(life))


def said_of(folder, limit=600.0):
    said: list[str] = []
    watch = Watch(folder, limit, said.append)
    watch.look()
    watch.look()
    return said, watch.ended


def test_a_process_that_does_not_wait_for_the_others_is_the_silent_one(tmp_path):
    lives(tmp_path, 70, 70, waits=False, at="ffcv.py:88")
    said, ended = said_of(tmp_path)
    assert said == ["process 1 of 2 has taken no step for 70 s; process 0 is at x.py:1, process 1 is at ffcv.py:88"]
    assert ended is None


def test_a_process_that_does_not_answer_is_named(tmp_path):
    lives(tmp_path, 70, 70, alive_at=time.monotonic() - 65)
    assert said_of(tmp_path)[0][0].startswith("process 1 of 2 has taken no step for 65 s")


@pytest.mark.parametrize("state", [{"resting": True}, {"step_at": None}])
def test_evaluations_and_preparations_are_not_missed(state, tmp_path):
    lives(tmp_path, 7000, 7000, **state)
    assert said_of(tmp_path) == ([], None)


def test_steps_are_no_silence(tmp_path):
    lives(tmp_path, 50, 3)
    assert said_of(tmp_path) == ([], None)


def test_long_silence_ends_the_run(tmp_path):
    lives(tmp_path, 700, 700)
    assert said_of(tmp_path)[1] == "process 0 of 2 took no step for 600 s (stall_timeout)"
    assert said_of(tmp_path, limit=None)[1] is None


def test_a_stopped_process_ends_the_run(tmp_path):
    running = Forked(tmp_path, *TWO, "stall_timeout=5s", env={"OMP_NUM_THREADS": "1"})
    wait_for(tmp_path / "run/checkpoints/epoch-0001/state.json", running)
    os.kill(next(pid for pid, rank in workers_of(running.pid) if rank == "1"), signal.SIGSTOP)
    err = running.communicate(timeout=60)[1]
    assert running.returncode == 2
    assert "process 1 of 2 has taken no step for" in err
    assert "process 1 of 2 took no step for 5 s (stall_timeout), and the others were stopped" in err
    assert "Traceback" not in err


def test_no_process_outlives_the_one_that_launched_it(tmp_path):
    running = Forked(tmp_path, *TWO, env={"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)})
    wait_for(tmp_path / "run/metrics.jsonl", running)
    workers = [pid for pid, _ in workers_of(running.pid)]
    assert len(workers) == 2
    running.kill()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/stat").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert not list(tmp_path.glob("sslkit-pulse-*"))
    assert list((tmp_path / "run/checkpoints").iterdir())
