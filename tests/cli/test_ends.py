"""Ends that must lose nothing: closed terminals, streams that take no more, narrow locales, signals at any moment."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers.forked_command import Forked

TINY = ["data=shapes", "data.n_train=16", "data.n_test=8", "data.image_size=32", "batch_size=8", "device=cpu"]
QUICK = [*TINY, "method=simclr", "backbone=squeezenet", "evaluators=[]", "report=false", "tune=off", "kernels=plain"]
RUN = ["run", *QUICK, "out=run"]


def stdout_is_full() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def everything_is_full() -> None:
    stdout_is_full()
    os.dup2(1, 2)


def nobody_reads() -> None:
    """Both streams end in a pipe whose reader has gone, as behind `2>&1 | head -1`."""
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    os.dup2(write, 2)


def streams_are_closed() -> None:
    os.close(1)
    os.close(2)


def locale_is_ascii() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")


@pytest.mark.parametrize("before", [everything_is_full, nobody_reads, streams_are_closed, locale_is_ascii])
def test_what_cannot_be_shown_does_not_end_training(before, tmp_path):
    running = Forked(tmp_path, *RUN, "epochs=1", before=before)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, out + err
    assert (tmp_path / "run/backbone.safetensors").is_file()
    assert "Traceback" not in out + err


@pytest.mark.parametrize("words", [["list"], ["show", "run"], ["doctor"]])
def test_tables_are_shown_in_any_locale(words, tmp_path):
    running = Forked(tmp_path, *words, before=locale_is_ascii)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert out.isascii()


def test_results_that_a_full_disk_loses_are_a_mistake(tmp_path):
    running = Forked(tmp_path, "list", before=stdout_is_full)
    err = running.communicate(timeout=60)[1]
    assert running.returncode == 2
    assert "results on standard output are lost (No space left on device)" in err


def test_a_reader_that_has_had_enough_is_no_mistake(tmp_path):
    running = Forked(tmp_path, "list", before=nobody_reads)
    running.communicate(timeout=60)
    assert running.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_saves_as_kill_does(signum, tmp_path):
    running = Forked(tmp_path, *RUN, "epochs=3000", "log_every=1", "checkpoint_every=0")
    _wait_for(tmp_path / "run/metrics.jsonl", running)
    running.send_signal(signum)
    err = running.communicate(timeout=60)[1]
    assert running.returncode == 128 + signum, err
    assert list((tmp_path / "run/checkpoints").iterdir())
    assert "stopped; saved" in err


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_nohup_outlives_its_terminal(tmp_path):
    running = Forked(tmp_path, *RUN, "epochs=20", "log_every=1", before=ignore_hangup)
    _wait_for(tmp_path / "run/metrics.jsonl", running)
    running.send_signal(signal.SIGHUP)
    running.communicate(timeout=60)
    assert running.returncode == 0


def test_a_signal_while_data_is_packed_leaves_no_temporary_file(tmp_path):
    words = ["pack", "shapes", "out.beton", "n_train=100000", "image_size=64"]
    running = Forked(tmp_path, *words)
    _wait_for_any(tmp_path, ".out.beton.*", running)
    running.send_signal(signal.SIGTERM)
    err = running.communicate(timeout=60)[1]
    assert running.returncode == 143, err
    assert {p.name for p in tmp_path.iterdir()} == {"stdout.txt", "stderr.txt"}
    assert "Traceback" not in err


def _wait_for(file: Path, running: Forked) -> None:
    _wait_for_any(file.parent, file.name, running)


def _wait_for_any(folder: Path, pattern: str, running: Forked, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not any(file.stat().st_size for file in folder.glob(pattern)):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
