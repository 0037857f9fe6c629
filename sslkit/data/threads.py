"""Work in threads, with ordered results and bounded memory.

Threads instead of processes: JPEG decoding, resampling and copying release the interpreter lock, so threads
keep every core busy, and there is nothing to fork beside a live CUDA context, to pickle, or to store
in /dev/shm. If Python itself takes the time, as for many small files, use `packing/processes.py`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """`map(function, items)` in `workers` threads, with at most `ahead` results started and not yet consumed."""
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="sslkit-data")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
