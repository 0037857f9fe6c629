"""Ctrl-C, SIGTERM and a closed terminal end a run between two steps, after saving."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from sslkit.machine import distributed, signals
from sslkit.machine.signals import Interrupted
from sslkit.training import pulse


class Stopper:
    """Context in which the first signal requests a stop after the current step, and a second one stops immediately."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.asked: int | None = None
        self._log = log
        self._immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        # Only the main thread may set signal handlers; in other threads the caller's handlers remain.
        if threading.current_thread() is threading.main_thread():
            self._before = signals.handle(self._handle)
            signals.take_time()
            # A signal before training whose exception was dropped.
            self.asked = self.asked or signals.asked()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pulse.end_of_steps()
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def at_once(self, work: Callable[[], None]) -> None:
        """Run `work`, which a signal interrupts immediately because it changes nothing that is saved (an evaluation).

        The request to stop is kept for `stop_if_asked`.
        """
        self._immediate = True
        try:
            if not self.asked:
                with pulse.resting():
                    work()
        except Interrupted as stopped:
            self.asked = stopped.status - 128
        finally:
            self._immediate = False

    def stop_if_asked(self) -> None:
        """Raise Interrupted in all processes if any of them received a signal; all must call it between two steps."""
        pulse.beat()
        if signum := distributed.largest(self.asked or 0):
            raise Interrupted(signum, within_step=False)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, signum
        if self._immediate or again:
            raise Interrupted(signum, within_step=not self._immediate)
        # In a thread, as the signal may have come in the middle of printing.
        text = "stopping after this step; a second Ctrl-C stops immediately, without saving"
        threading.Thread(target=self._log, args=(text,)).start()
