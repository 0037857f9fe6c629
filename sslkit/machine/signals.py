"""Signals that ask a process to stop, and the exception that they become: what is half written is cleaned up."""

import os
import signal
import threading
from types import FrameType
from typing import Any

STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
"""Ctrl-C, `kill`, and a terminal that closes."""


class Interrupted(KeyboardInterrupt):
    """Raised when a signal stops the work; `status` is the exit status: 130, 143 or, for a closed terminal, 129."""

    def __init__(self, signum: int, within_step: bool = False) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum
        self.within_step = within_step


def stopped_by(status: int) -> int | None:
    """Return the signal that an exit status, or a process's negative one, tells of; None if it tells of none."""
    return next((int(s) for s in STOPPING if status in (128 + s, -s)), None)


def handle(handler: Any) -> dict[int, Any]:
    """Let `handler` take the signals that stop this process, and return their handlers so far."""
    return {s: signal.signal(s, handler) for s in heeded()}


def heeded() -> list[signal.Signals]:
    """Return the signals that stop this process: not a closed terminal's where it is ignored, as nohup asks."""
    ignored = signal.SIGHUP if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else None
    return [s for s in STOPPING if s != ignored]


GRACE = 30.0
"""Seconds after a signal in which a command may clean up; then its process ends in any case."""
_taken: list[tuple[int, threading.Timer]] = []
"""Signals that `raise_interrupted` took, each with what ends the process after `GRACE`."""


def raise_interrupted(signum: int, frame: FrameType | None) -> None:
    """Raise Interrupted: the handler of a command outside of training, where nothing has to be saved.

    Python drops an exception that is raised in a destructor or a callback, and libraries drop one of their imports.
    `asked` then still tells of the signal.
    """
    end = threading.Timer(GRACE, os._exit, [128 + signum])
    end.daemon = True
    end.start()
    _taken.append((signum, end))
    raise Interrupted(signum)


def asked() -> int | None:
    """Return the last signal that `raise_interrupted` took in this process, None if there was none."""
    return _taken[-1][0] if _taken else None


def take_time() -> None:
    """Let a signal that was taken no longer end the process: training saves first, and then heeds `asked`."""
    for _, end in _taken:
        end.cancel()
