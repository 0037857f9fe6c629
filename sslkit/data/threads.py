"""Work in threads, with ordered results and bounded memory.

Threads instead of processes: JPEG decoding, resampling and copying release the interpreter lock, so threads
keep every core busy, and there is nothing to fork beside a live CUDA context, to pickle, or to store
in /dev/shm. If Python itself takes the time, as for many small files, use `packing/processes.py`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """`map(function, items)` in `workers` threads, with at most `ahead` results started and not yet consumed."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="sslkit-data")
    try:
        yield from ordered_results(pool, function, items, ahead)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def ordered_results(pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`map(function, items)` in the workers of `pool`, with at most `ahead` results started and not yet consumed."""
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
