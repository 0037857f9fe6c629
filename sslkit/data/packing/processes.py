"""Work in processes of their own, for Python code that keeps the interpreter busy: threads would wait for each other.

The processes are loky's: neither forked, beside a live CUDA context, nor by multiprocessing, whose new processes run
the caller's script once more, so that a script without `if __name__ == "__main__"` would begin again in each of them.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sslkit.data.threads import ordered_results

T = TypeVar("T")
R = TypeVar("R")


def ordered_map_by_processes(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """`map(function, items)` by `workers` processes, with at most `ahead` results begun and not yet taken.

    Function, items and results are pickled. The processes end with the iterator, at the latest with this process.
    Raises what `function` raises, and RuntimeError if a process has died, for example of a lack of memory.
    """
    from loky import ProcessPoolExecutor
    from loky.process_executor import BrokenProcessPool

    # Ctrl-C reaches all processes of a terminal; this one ends the others.
    pool = ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield from ordered_results(pool, function, items, ahead)
    except BrokenProcessPool as error:
        raise RuntimeError("a helper process has died; is memory short?") from error
    finally:
        pool.shutdown(kill_workers=True)
