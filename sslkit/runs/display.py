"""What a run shows: a bar on a terminal, plain lines in a pipe or a log file."""

from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    pass

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Says things to the user. `quiet` says nothing; tests and libraries use it."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._progress: Progress | None = None
        self._task: Any = None
        self._total = 0
        self._last_line = float("-inf")
        self._warned: set[str] = set()

    def log(self, text: str) -> None:
        self.console.print(text, markup=False)

    def warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            self.console.print(f"warning: {text}", style="yellow", markup=False)

    @contextmanager
    def bar(self, total: int, done: int) -> Iterator[None]:
        """The training bar; on anything but a terminal, `metrics` prints lines instead."""
        self._total = total
        if not self.console.is_terminal:
            yield
            return
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=self.console) as self._progress:
            self._task = self._progress.add_task("training", total=total, completed=done)
            yield
        self._progress = None

    def metrics(self, metrics: dict[str, Any]) -> None:
        """One logging interval's figures."""
        text = _in_words(metrics)
        if self._progress is not None:
            self._progress.update(self._task, completed=metrics["step"], description=text)
        elif self._due(metrics["step"]):
            self.log(f"step {metrics['step']}/{self._total}  {text}")

    def _due(self, step: int) -> bool:
        """A log file wants a line every few seconds, not every few milliseconds."""
        now = time.monotonic()
        if now - self._last_line < 5 and step != self._total:
            return False
        self._last_line = now
        return True

    def evaluation(self, record: dict[str, Any]) -> None:
        """One evaluator's result."""
        when = f"epoch {record['epoch']}  " if "epoch" in record else ""
        self.log(f"{when}{record['evaluator']}: {figures(record)}")


def figures(record: dict[str, Any]) -> str:
    """An evaluator's result in words; accuracies in per cent, with their intervals."""
    from sslkit.runs.records import is_accuracy, measured

    found = measured(record).items()
    return "  ".join(f"{k} {accuracy(record, k)}" if is_accuracy(k) else f"{k} {v:.4g}" for k, v in found)


def accuracy(record: dict[str, Any], name: str) -> str:
    """A fraction of test images in per cent, and where it is known its 95 % interval: 83.0 % (81.2–84.6)."""
    ends = [record[f"{name}{end}"] for end in ("_low", "_high") if f"{name}{end}" in record]
    interval = f" ({'–'.join(f'{100 * end:.1f}' for end in ends)})" if ends else ""
    return f"{100 * record[name]:.1f} %{interval}"


def _in_words(metrics: dict[str, Any]) -> str:
    loss = metrics["loss"]
    return (
        f"epoch {metrics['epoch']:.1f}  loss {'-' if loss is None else format(loss, '.3f')}  "
        f"{metrics['images_per_second']:.0f} images/s  waiting for data {100 * metrics['data_wait']:.0f} %"
    )


def terminal() -> Console:
    """As wide as the terminal; in a pipe wide enough that no row is folded."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)
