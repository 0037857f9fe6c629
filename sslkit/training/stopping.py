"""Ctrl-C and SIGTERM end a run between two steps, after saving."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from sslkit.machine import distributed


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; `status` is the exit status, 130 or 143."""

    def __init__(self, signum: int, within_step: bool) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum
        self.within_step = within_step


class Stopper:
    """While entered, the first signal asks the run to stop after its step; a second one stops it at once."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.asked: int | None = None
        self._log = log
        self._immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        # Python lets only the main thread set handlers; elsewhere the caller's own handling stays in force.
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def at_once(self, work: Callable[[], None]) -> None:
        """For work that changes nothing worth saving (an evaluation): a signal breaks it off, for `stop_if_asked`."""
        self._immediate = True
        try:
            if not self.asked:
                work()
        except Interrupted as stopped:
            self.asked = stopped.status - 128
        finally:
            self._immediate = False

    def stop_if_asked(self) -> None:
        """Called between two steps, by all processes. Raises Interrupted in all of them if a signal has come to one."""
        if signum := distributed.largest(self.asked or 0):
            raise Interrupted(signum, within_step=False)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, signum
        if self._immediate or again:
            raise Interrupted(signum, within_step=not self._immediate)
        self._log("stopping after this step; again to stop at once, without saving")
