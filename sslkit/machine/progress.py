"""Progress of long tasks: a bar on a terminal, a plain line every few seconds in a pipe or a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Update = Callable[[int, int, str], None]
"""update(done, total, text), which may be called often. text: label of the bar, or the plain line."""


def terminal_stderr() -> "Console":
    """Return a console on standard error that does not wrap lines, for messages apart from results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(
    console: "Console", *, done: int = 0, every: float = 10.0, at_once: bool = False, keep: bool = False
) -> Iterator[Update]:
    """Yield the `Update` of a task of which `done` units are already done.

    every: seconds between two plain lines. at_once: print the first and the last plain line without waiting.
    keep: leave the finished bar on the terminal.
    """
    if not console.is_terminal:
        yield _lines(console, every, at_once)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    percentage = TextColumn("{task.percentage:>3.0f} %")
    columns = [TextColumn("{task.description}"), BarColumn(), percentage, TimeElapsedColumn(), TextColumn("left")]
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=not keep) as bar:
        task = bar.add_task("", total=None, completed=done)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


def _lines(console: "Console", every: float, at_once: bool) -> Update:
    printed = float("-inf") if at_once else time.monotonic()

    def update(done: int, total: int, text: str) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= every or (at_once and done == total):
            printed = now
            console.print(text, markup=False)

    return update
