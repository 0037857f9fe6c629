"""Advice when memory runs out: a smaller setting that has been tried and fits."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from sslkit.errors import UserError
from sslkit.machine import distributed
from sslkit.machine.allocator import freed_memory
from sslkit.machine.devices import release

if TYPE_CHECKING:
    from sslkit.training.setup import TrainingSetup


MESSAGES = (
    "allocate memory",
    "could not create a primitive",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """Return True if the error means that memory ran out.

    torch raises its own exception type on CUDA; errors of lower-level libraries and of CPU libraries can only be
    recognised by their messages.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in MESSAGES)


def out_of_memory(setup: "TrainingSetup", image_batch: Any, error: RuntimeError) -> UserError:
    """Return a UserError that recommends the largest micro-batch for which a training step has been tried and fits."""
    config, processes = setup.config, distributed.world()
    key, value = ("micro_batch", config.micro_batch) if config.micro_batch else ("batch_size", config.batch_size)
    asked = f"out of memory at {key}={value} with images of {setup.stores.image_size} px"
    share = config.batch_size // processes
    size = config.micro_batch or share
    smaller = _divisors(share, size)
    if not smaller and size > 3:
        return UserError(
            f"{asked}, and {share} images cannot be split into micro-batches: use a batch_size with more divisors"
        )
    if not smaller:
        return UserError(f"{asked}, {size} at a time; use a smaller data.image_size or backbone")
    if processes > 1:
        return UserError(f"{asked}, {size} images on each of {processes} processes; set micro_batch={smaller[0]}")
    error.__traceback__ = None  # The traceback keeps the failed step's tensors alive.
    # Memory freed by the failed step but kept by malloc would be unavailable to other allocators.
    with freed_memory(keep=False):
        fits = _largest_that_fits(setup, image_batch)
    if fits is None:
        return UserError(f"{asked}; not even micro_batch=2 fits: use a smaller data.image_size or backbone")
    return UserError(
        f"{asked}; micro_batch={fits} fits (tried just now) and keeps the gradient of the whole batch. "
        f"Use micro_batch={fits}, or a smaller batch_size, data.image_size or backbone"
    )


def _largest_that_fits(setup: "TrainingSetup", image_batch: Any) -> int | None:
    from sslkit.machine.precision import uncompiled
    from sslkit.training.step import train_step

    batch = setup.config.batch_size
    for size in _divisors(batch, setup.config.micro_batch or batch):
        setup.optimizer.zero_grad(set_to_none=True)
        release(setup.device)
        try:
            # The network was compiled for another batch size. If it is not compiled, do not import the compiler, whose
            # modules need memory too.
            with nullcontext() if setup.execution.compile == "no" else uncompiled():
                train_step(setup, [image_batch], 0, micro_batch=size)
            return size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    return None


def _divisors(share: int, size: int) -> list[int]:
    """Return divisors of `share` from at most `size` / 2 down to 2, each at most half of the one before it."""
    chosen = [size]
    for divisor in range(size // 2, 1, -1):
        if share % divisor == 0 and 2 * divisor <= chosen[-1]:
            chosen.append(divisor)
    return chosen[1:]
