"""Signals: asked politely the run stops between steps; asked twice it stops at once and does not save half a step."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner

from sslkit.cli.main import cli
from sslkit.machine import signals
from sslkit.machine.signals import Interrupted
from sslkit.training.stopping import Stopper


def raise_signal(signum):
    os.kill(os.getpid(), signum)


def _wait_until(condition, seconds=5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_signal_in_the_middle_of_a_message_lets_it_end():
    lock, said = threading.Lock(), []

    def log(text):
        with lock:
            said.append(text)

    with Stopper(log):
        with lock:
            raise_signal(signal.SIGTERM)
        _wait_until(lambda: said)


def test_the_first_signal_waits_for_the_step_to_end():
    said = []
    with Stopper(said.append) as stopper:
        raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as stopped:
            stopper.stop_if_asked()
    _wait_until(lambda: said)
    assert stopped.value.status == 143
    assert not stopped.value.within_step


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_before_training_stops_it_even_if_python_drops_the_exception(monkeypatch):
    class Closing:
        def __del__(self):
            signals.raise_interrupted(signal.SIGTERM, None)

    monkeypatch.setattr(signals, "_taken", [])
    closing = Closing()
    del closing
    with Stopper(print) as stopper, pytest.raises(Interrupted) as stopped:
        stopper.stop_if_asked()
    assert stopped.value.status == 143
    [(_, end)] = signals._taken
    assert end.finished.is_set(), "cancelled: the run may take its time to save"


def test_a_process_that_drops_a_signal_ends_after_a_while():
    code = """
import os, signal, time
from sslkit.machine import signals
signals.GRACE = 0.2
signals.handle(signals.raise_interrupted)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
except signals.Interrupted:
    time.sleep(20)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=15).returncode == 143


def test_a_failure_after_a_signal_is_told_as_the_stop(monkeypatch):
    monkeypatch.setattr(signals, "_taken", [(signal.SIGTERM, threading.Timer(1, print))])

    def fail(*args):
        raise RecursionError("half a module")

    monkeypatch.setattr("sslkit.cli.tables.print_components", fail)
    assert CliRunner().invoke(cli, ["list", "methods"]).exit_code == 143
    monkeypatch.setattr(signals, "_taken", [])
    assert isinstance(CliRunner().invoke(cli, ["list", "methods"]).exception, RecursionError)


def test_a_second_signal_cuts_the_step_in_two():
    with Stopper(lambda text: None):
        raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted) as stopped:
            raise_signal(signal.SIGINT)
    assert stopped.value.status == 130
    assert stopped.value.within_step


def test_an_evaluation_is_interrupted_at_once_and_the_state_is_whole():
    done = []

    def work():
        done.append("begun")
        raise_signal(signal.SIGINT)
        done.append("ended")

    with Stopper(lambda text: None) as stopper:
        stopper.at_once(work)
        assert done == ["begun"]
        with pytest.raises(Interrupted) as stopped:
            stopper.stop_if_asked()
        stopper.at_once(work)
    assert done == ["begun"]
    assert stopped.value.status == 130
    assert not stopped.value.within_step


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stopper(lambda text: None):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
