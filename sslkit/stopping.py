"""Ctrl-C and SIGTERM end a run between two steps, after saving."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and has saved; `status` is the exit status, 130 or 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class Stopper:
    """While entered, the first signal asks the run to stop after its step; a second one stops it at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked: int | None = None
        self._say = say
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

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For stretches that change nothing worth saving (an evaluation): a signal interrupts them."""
        self._immediate = True
        try:
            if self.asked:
                self.stop()
            yield
        finally:
            self._immediate = False

    def stop(self) -> NoReturn:
        raise Interrupted(self.asked or signal.SIGINT)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, signum
        if self._immediate or again:
            self._immediate = False
            self.stop()
        self._say("stopping after this step")
