"""Work in a process of its own, which may crash or hang."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sslkit.testing.processes import fork_server

Ending = tuple[str, str]
"""(died or timed out, the reason)."""


def in_own_process(work: Callable[..., None], *args: Any, until: float) -> Ending | None:
    """Call work(*args) in a process; return how it ended if it did not return.

    until: time of `time.monotonic()` at which it and all that it has started are killed. `work` and `args` are pickled.
    """
    process: Any = fork_server().Process(target=lead, args=(work, args))
    process.start()
    try:
        process.join(max(0.0, until - time.monotonic()))
        if process.exitcode is None:
            return "timed out", "it had not ended when the time of its part was up"
        if process.exitcode < 0:
            return "died", f"its process was killed by {signal.Signals(-process.exitcode).name}"
        return ("died", f"its process ended with status {process.exitcode}") if process.exitcode else None
    finally:
        kill(process)


def lead(work: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Work in a new session, so that one signal reaches the process and all that it starts."""
    os.setsid()
    work(*args)


def kill(process: Any) -> None:
    """Kill the session that a process leads, and the process in case it does not lead one yet."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
