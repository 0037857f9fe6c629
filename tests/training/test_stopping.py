"""Signals: asked politely the run stops between steps; asked twice it stops at once and does not save half a step."""

import os
import signal
import threading
import time

import pytest

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

    monkeypatch.setattr(signals, "_raised", [])
    closing = Closing()
    del closing
    with Stopper(print) as stopper, pytest.raises(Interrupted) as stopped:
        stopper.stop_if_asked()
    assert stopped.value.status == 143


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
