"""When memory runs out: advise by how much to reduce what, after trying it."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from sslkit.errors import UserError
from sslkit.machine import distributed
from sslkit.machine.allocator import freed_memory
from sslkit.machine.devices import release

if TYPE_CHECKING:
    from sslkit.training.setup import TrainingSetup


TOLD = (
    "allocate memory",
    "could not create a primitive",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """torch has a type of its own for it on CUDA; the libraries below it, and those of the CPU, only messages."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in TOLD)


def out_of_memory(setup: "TrainingSetup", image_batch: Any, error: RuntimeError) -> UserError:
    """The advice: the largest micro-batch whose step has just been seen to fit."""
    config, processes = setup.config, distributed.world()
    key, value = ("micro_batch", config.micro_batch) if config.micro_batch else ("batch_size", config.batch_size)
    asked = f"out of memory at {key}={value} with images of {setup.stores.image_size} px"
    share = config.batch_size // processes
    size = config.micro_batch or share
    smaller = _divisors(share, size)
    if not smaller and size > 3:
        return UserError(f"{asked}, and {share} images cannot be taken in parts: use a batch_size of many divisors")
    if not smaller:
        return UserError(f"{asked}, {size} at a time; use a smaller data.image_size or backbone")
    if processes > 1:
        return UserError(f"{asked}, {size} images on each of {processes} processes; set micro_batch={smaller[0]}")
    error.__traceback__ = None  # The traceback holds the failed step's tensors.
    # What the failed step took, kept, would be missing from whatever is not allocated by malloc.
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
            # Code was compiled for another size. Where nothing is, the compiler's modules would need memory, too.
            with nullcontext() if setup.execution.compile == "no" else uncompiled():
                train_step(setup, [image_batch], 0, micro_batch=size)
            return size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    return None


def _divisors(share: int, size: int) -> list[int]:
    """Sizes that divide `share`, each at most half of the one before, from at most half of `size` down to 2."""
    chosen = [size]
    for part in range(size // 2, 1, -1):
        if share % part == 0 and 2 * part <= chosen[-1]:
            chosen.append(part)
    return chosen[1:]
