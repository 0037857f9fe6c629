"""Worker processes for tasks that hold the interpreter lock, where threads would wait for one another.

They are neither forked, beside a live CUDA context, nor started by multiprocessing, whose new processes re-run the
caller's script: one without `if __name__ == "__main__"` would start again in each of them.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any

SERVE = "from sslkit.data.packing.processes import serve; serve()"


class Processes:
    """`count` Python processes that call functions for as many threads; a context manager that ends them."""

    def __init__(self, count: int) -> None:
        # The current folder appears as "" in sys.path.
        places = os.pathsep.join(map(os.path.abspath, sys.path))
        command, environment = [sys.executable, "-P", "-c", SERVE], os.environ | {"PYTHONPATH": places}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._all = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for process in self._all:
            self._idle.put(process)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self._all:
            process.kill()
            process.communicate()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(*arguments)`, called in an idle process; all of it is pickled, the function by its name.

        Raises what the function raises, and RuntimeError if the process has died, for example for lack of memory.
        """
        process = self._idle.get()
        try:
            _send((function, arguments), _pipe(process.stdin))
            result, error = pickle.load(_pipe(process.stdout))
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise RuntimeError(f"helper process {process.pid} has died; is memory short?") from None
        finally:
            self._idle.put(process)
        if error is not None:
            raise error
        return result


def serve() -> None:
    """Serve calls in a worker process until its pipe closes, which happens when the parent process ends."""
    # Ctrl-C reaches all processes of a terminal; the parent process ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    # Output printed by a decoder must not mix with the answers.
    os.dup2(2, 1)
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _send(_answer(function, arguments), answers)


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error


def _send(content: Any, pipe: IO[bytes]) -> None:
    pickle.dump(content, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    """Narrow the type of Popen's pipes, which may be None."""
    if pipe is None:
        raise ValueError("the process was started without a pipe")
    return pipe
