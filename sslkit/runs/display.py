"""Messages and progress of a run: a progress bar on a terminal, plain lines in a pipe or a log file."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from sslkit.machine.console import PlainConsole
from sslkit.machine.progress import Update, progress_bar
from sslkit.runs.label_free import LABEL_FREE, label_free
from sslkit.runs.records import FLOORS, floors_of, is_accuracy, measured


class Display:
    """Prints messages for the user on standard error, or nothing if `quiet`, as for tests and libraries."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or PlainConsole(stderr=True, soft_wrap=True, quiet=quiet)
        self._update: Update = lambda done, total, text: None
        self._total = 0
        self._warned: set[str] = set()

    def log(self, text: str) -> None:
        self.console.print(text, markup=False)

    def always(self, text: str) -> None:
        """Print a message on standard error even where the display is quiet: without it, something would be lost."""
        Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)

    def warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            self.console.print(f"warning: {text}", style="yellow", markup=False)

    @contextmanager
    def bar(self, total: int, done: int) -> Iterator[None]:
        """Show the progress of training inside the block; `metrics` updates it."""
        self._total = total
        with progress_bar(self.console, done=done, every=5, at_once=True, keep=True) as self._update:
            if self.console.is_terminal:
                self._update(done, total, "training")
            yield

    def metrics(self, metrics: dict[str, Any]) -> None:
        """Show the metrics of one logging interval."""
        step, text = metrics["step"], _summary(metrics)
        # The bar itself shows the progress; a line in a file must state it.
        self._update(step, self._total, text if self.console.is_terminal else f"step {step}/{self._total}  {text}")

    def evaluation(self, record: dict[str, Any]) -> None:
        """Show the result of one evaluator."""
        when = f"epoch {record['epoch']}  " if "epoch" in record else ""
        self.log(f"{when}{record['evaluator']}: {figures(record)}")


def figures(record: dict[str, Any]) -> str:
    """Format an evaluator's results; accuracies in per cent, with their intervals."""
    if without_labels := label_free(record):
        return "  ".join(_beside_floors(record, name, value) for name, value in without_labels.items())
    found = measured(record).items()
    text = "  ".join(f"{k} {accuracy(record, k)}" if is_accuracy(k) else f"{k} {v:.4g}" for k, v in found)
    floors = ", ".join(f"{FLOORS[name]} {100 * value:.1f}" for name, value in floors_of(record).items())
    return f"{text}  [{floors}]" if floors else text


def _beside_floors(record: dict[str, Any], name: str, value: float) -> str:
    """Format a figure without labels, with its floors: rankme 612.2 [random init 78.6]."""
    figure = LABEL_FREE[name]
    floors = ", ".join(f"{FLOORS[k]} {figure.text(v)}" for k, v in floors_of(record, name).items())
    return f"{name} {figure.text(value)}" + (f" [{floors}]" if floors else "")


def accuracy(record: dict[str, Any], name: str) -> str:
    """Format a fraction of test images in per cent, with its 95 % interval if known: 83.0 % (81.2–84.6)."""
    ends = [record[f"{name}{end}"] for end in ("_low", "_high") if f"{name}{end}" in record]
    interval = f" ({'–'.join(f'{100 * end:.1f}' for end in ends)})" if ends else ""
    return f"{100 * record[name]:.1f} %{interval}"


def _summary(metrics: dict[str, Any]) -> str:
    loss = metrics["loss"]
    return (
        f"epoch {metrics['epoch']:.1f}  loss {'-' if loss is None else format(loss, '.3f')}  "
        f"{metrics['images_per_second']:.0f} images/s  waiting for data {100 * metrics['data_wait']:.0f} %"
    )


def terminal() -> Console:
    """Return a console for results on standard output; in a pipe it is wide enough that no table row is folded."""
    console = PlainConsole()
    return console if console.is_terminal else PlainConsole(width=200)
