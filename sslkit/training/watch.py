"""Watch over the processes that train together: one that is silent is named after a minute, and later ends the run."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sslkit.training.pulse import EVERY

NAMED_AFTER = 60.0
"""Seconds of silence after which a process is named."""
Life = dict[str, Any]


class Watch:
    """The watch over processes that show signs of life in a folder."""

    def __init__(self, folder: Path, limit: float | None, log: Callable[[str], None]) -> None:
        self.ended: str | None = None
        """The sentence about the process that ended the run; None if none did."""
        self.folder = folder
        self._limit = limit or float("inf")
        self._log = log
        self._named = False

    def look(self) -> None:
        """Look once: name a silent process, or end it."""
        lives = self._lives()
        silence, rank = _silence(lives)
        if silence < min(NAMED_AFTER, self._limit / 2):
            self._named = False
        elif silence >= self._limit and self.ended is None:
            self.ended = f"process {rank} of {len(lives)} took no step for {self._limit:.0f} s (stall_timeout)"
            with suppress(OSError):
                os.kill(lives[rank]["pid"], signal.SIGKILL)
        elif not self._named:
            self._named = True
            places = ", ".join(f"process {number} is at {life['at']}" for number, life in sorted(lives.items()))
            self._log(f"process {rank} of {len(lives)} has taken no step for {silence:.0f} s; {places}")

    def _lives(self) -> dict[int, Life]:
        found = {}
        for file in self.folder.glob("[0-9]*"):
            with suppress(OSError, ValueError):
                found[int(file.name)] = json.loads(file.read_text(encoding="utf-8"))
        return found


@contextmanager
def watched(limit: float | None, log: Callable[[str], None]) -> Iterator[Watch]:
    """Yield a watch that looks once a second inside the block. limit: seconds of silence that end a process."""
    done = threading.Event()
    with TemporaryDirectory(prefix="sslkit-pulse-", ignore_cleanup_errors=True) as folder:
        watch = Watch(Path(folder), limit, log)
        thread = threading.Thread(target=_look_until, args=(watch, done), daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            done.set()
            thread.join()


def _look_until(watch: Watch, done: threading.Event) -> None:
    while not done.wait(EVERY):
        watch.look()


def _silence(lives: dict[int, Life]) -> tuple[float, int]:
    """Return the longest silence in seconds, and whose it is: a process that does not answer, or one without a step.

    Processes wait for each other, so that one without a step silences all: it is the one that does not wait.
    """
    now = time.monotonic()
    unanswered = max(((now - life["alive_at"], rank) for rank, life in lives.items()), default=(0.0, 0))
    if unanswered[0] > 10 * EVERY or not lives:
        return unanswered
    if any(life["resting"] or life["step_at"] is None for life in lives.values()):
        return 0.0, 0
    rank = min(lives, key=lambda r: (lives[r]["waits"], lives[r]["step_at"]))
    return now - max(life["step_at"] for life in lives.values()), rank
