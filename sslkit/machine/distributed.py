"""Communication between processes that train one network. With one process, every function is the identity."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """Return the rank of this process, 0 to world() - 1."""
    return dist.get_rank() if _several() else 0


def world() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if _several() else 1


def local_rank() -> int:
    """Return the rank of this process on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _several() else 0


def local_world() -> int:
    """Return the number of processes on this machine that train together."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if _several() else 1


def is_main() -> bool:
    """Return True in the process that logs and saves (rank 0)."""
    return rank() == 0


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes in rank order: [B, ...] -> [world·B, ...], the same on all processes.

    Differentiable: the gradient of a process's own rows is the sum of their gradients on all processes. Therefore a
    loss that every process computes from the gathered rows has, after DistributedDataParallel's mean over processes,
    exactly the gradient of that loss on the whole batch. All processes must have the same number of rows.
    """
    return tensor if world() == 1 else _Gather.apply(tensor)


def shared(tensor: Tensor) -> Tensor:
    """Broadcast the tensor of the first process, for random draws that must agree. Not differentiable."""
    if world() > 1:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor


@torch.no_grad()
def mean(tensor: Tensor) -> Tensor:
    """Return the mean over processes of a floating-point tensor of the same shape on all. Not differentiable."""
    if world() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes, as DistributedDataParallel does in every backward pass."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world()


def largest(number: int) -> int:
    """Return the maximum of a number over processes. It uses host memory only, and does not wait for any GPU."""
    if world() == 1:
        return number
    everyone = torch.tensor(number)
    dist.all_reduce(everyone, dist.ReduceOp.MAX)
    return int(everyone)


def from_main(thing: Any) -> Any:
    """Broadcast a picklable Python value from the first process."""
    things = [thing]
    if world() > 1:
        dist.broadcast_object_list(things, src=0, device=torch.device("cpu"))
    return things[0]


def everyones(thing: Any) -> list[Any]:
    """Gather a picklable Python value from all processes, in rank order, on all of them."""
    things = [thing] * world()
    if world() > 1:
        dist.all_gather_object(things, thing)
    return things


@contextmanager
def alone() -> Iterator[None]:
    """Work inside the block as if this process were the only one, so that a failure in one blocks no other."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the first process before the others enter it."""
    if not is_main():
        largest(0)
    yield
    if is_main():
        largest(0)


_is_alone = False


def _several() -> bool:
    return not _is_alone and dist.is_available() and dist.is_initialized()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world())[rank()]
