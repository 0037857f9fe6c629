"""Worker processes for Python code that holds the interpreter lock, where threads would wait for one another.

The processes are loky's: neither forked, beside a live CUDA context, nor started by multiprocessing, whose processes
re-run the caller's script: one without `if __name__ == "__main__"` would start again in each of them.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sslkit.data.threads import ordered_results

T = TypeVar("T")
R = TypeVar("R")


def ordered_map_by_processes(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """`map(function, items)` in `workers` processes, with at most `ahead` results started and not yet consumed.

    Function, items and results are pickled. The processes end with the iterator, at the latest with this process.
    Raises what `function` raises, and RuntimeError if a process has died, for example for lack of memory.
    """
    from loky import ProcessPoolExecutor
    from loky.process_executor import BrokenProcessPool

    # Ctrl-C reaches all processes of a terminal; the parent process ends the workers.
    pool = ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield from ordered_results(pool, function, items, ahead)
    except BrokenProcessPool as error:
        raise RuntimeError("a helper process has died; is memory short?") from error
    finally:
        pool.shutdown(kill_workers=True)
