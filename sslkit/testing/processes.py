"""Work in two processes that share a process group, as two GPUs would."""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any

import torch
import torch.distributed as dist

from sslkit.methods.base import Batch

IMPORTED = (
    "sslkit.training.engine",
    "sslkit.testing",
    "torchvision",
    "timm",
    "torch._dynamo",
    "torch.nn.parallel.distributed",
    "matplotlib.pyplot",
)
"""Modules that a run imports sooner or later, which takes most of the time of a short test."""


def fork_server() -> multiprocessing.context.BaseContext:
    """Return a context whose processes start with these modules imported, at once where the system can fork.

    Linux and macOS can; elsewhere processes are spawned.

    They are forked from a server that has only imported modules, so they share no state with this process.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Has no effect once the server is running.
    context.set_forkserver_preload(list(IMPORTED))
    with _our_path():
        forkserver.ensure_running()
    return context


@contextmanager
def _our_path() -> Iterator[None]:
    """Let the server import what this process would: Python 3.11 does not pass `sys.path` on to it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.__setitem__("PYTHONPATH", before)


def in_two_processes(work: Callable[..., Any], *args: Any, backend: str = "gloo") -> None:
    """Call work(rank, *args) in two processes that share a process group, one thread each.

    backend: as in `torch.distributed.init_process_group`; gloo serves the CPU. `work` and `args` are pickled, so `work`
    is a function of a module. Raises what one of the processes raises.
    """
    method = fork_server().get_start_method()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (backend, f"file://{folder}/meeting", work, args)
        torch.multiprocessing.start_processes(_joined, meeting, nprocs=2, start_method=method)


def half(batch: Batch, rank: int) -> Batch:
    """Return the part of a batch that process `rank` of two has: half of the images, with all their views."""
    images = len(batch.indices)
    crops = [crop.unflatten(0, (-1, images)).chunk(2, 1)[rank].flatten(0, 1) for crop in batch.crops]
    labels = None if batch.labels is None else batch.labels.chunk(2)[rank]
    return Batch(crops, batch.indices.chunk(2)[rank], labels)


def _joined(rank: int, backend: str, meeting: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(backend, meeting, rank=rank, world_size=2)
    try:
        work(rank, *args)
    finally:
        dist.destroy_process_group()
