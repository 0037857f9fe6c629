"""Progress of long tasks: a bar on a terminal, a plain line every few seconds in a pipe or a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

NARROW = 110
"""Columns of a terminal up to which there is no bar, as text and times need the room."""
Update = Callable[[int, int, str], None]
"""update(done, total, text), which may be called often. text: label of the bar, or the plain line."""


def terminal_stderr() -> "Console":
    """Return a console on standard error that does not wrap lines, for messages apart from results."""
    from sslkit.machine.console import PlainConsole

    return PlainConsole(stderr=True, soft_wrap=True)


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
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    # Where there is no room for everything, the text is cut, and not the times.
    text = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    share = [BarColumn(), *_tail()] if console.width > NARROW else _tail()
    with Progress(text, *share, console=console, transient=not keep, expand=console.width <= NARROW) as bar:
        task = bar.add_task("", total=None, completed=done)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


def _tail() -> "list[ProgressColumn]":
    """Return the columns that are always shown whole: percentage, time elapsed and time left."""
    from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    numbers = Column(no_wrap=True, overflow="crop")
    return [
        TextColumn("{task.percentage:>3.0f} %", table_column=numbers),
        TimeElapsedColumn(),
        TextColumn("left", table_column=numbers),
        TimeRemainingColumn(),
    ]


def _lines(console: "Console", every: float, at_once: bool) -> Update:
    printed = float("-inf") if at_once else time.monotonic()

    def update(done: int, total: int, text: str) -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed >= every or (at_once and done == total):
            printed = now
            console.print(text, markup=False)

    return update
