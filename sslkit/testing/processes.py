"""Work in two processes, as two GPUs would share it."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def in_two_processes(work: Callable[..., Any], *args: Any) -> None:
    """Call work(rank, *args) in two processes that share a process group, on the CPU, one thread each.

    `work` and `args` are pickled, so `work` is a function of a module. Raises what one of them raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_joined, (f"file://{folder}/meeting", work, args), nprocs=2)


def _joined(rank: int, meeting: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", meeting, rank=rank, world_size=2)
    try:
        work(rank, *args)
    finally:
        dist.destroy_process_group()
