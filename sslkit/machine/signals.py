"""Signals that ask a process to stop, and the exception that they become: what is half written is cleaned up."""

import signal
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


_raised: list[int] = []


def raise_interrupted(signum: int, frame: FrameType | None) -> None:
    """Raise Interrupted: the handler of a command outside of training, where nothing has to be saved.

    Python drops an exception that is raised in a destructor or a callback; `asked` then still tells of the signal.
    """
    _raised.append(signum)
    raise Interrupted(signum)


def asked() -> int | None:
    """Return the last signal that `raise_interrupted` took in this process, None if there was none."""
    return _raised[-1] if _raised else None
