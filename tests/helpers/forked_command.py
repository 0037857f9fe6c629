"""`sslkit words...` in a process of its own that starts in no time: its imports are done."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.paths import PYTHONPATH
from sslkit.testing.processes import fork_server


class Forked:
    """Like subprocess.Popen of `python -m sslkit words...` with both outputs piped, but forked from a warm server.

    Signals reach it, and it ends, as any other process does. `before`, a function of a module, is called in it first.
    """

    def __init__(
        self,
        folder: Path,
        *words: str,
        env: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._outputs = [folder / f"{name}.txt" for name in ("stdout", "stderr")]
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "COLUMNS": "200", **(env or {})}
        arguments = (str(folder), words, environment, [str(output) for output in self._outputs], before)
        # A daemon, so that a failed test leaves no process behind.
        self._process = fork_server().Process(target=_command_line, args=arguments, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """What it has written to stdout and to stderr, once it has ended."""
        self._process.join(timeout)
        assert self.returncode is not None, f"still running after {timeout} s"
        out, err = (output.read_text() if output.exists() else "" for output in self._outputs)
        return out, err


def _command_line(
    folder: str,
    words: tuple[str, ...],
    environment: dict[str, str],
    outputs: list[str],
    before: Callable[[], None] | None,
) -> None:
    from sslkit.cli.main import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, output in zip((1, 2), outputs):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["sslkit", *words]
    if before:
        before()
    main()
