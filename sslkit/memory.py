"""When memory runs out: say by how much to reduce what, after trying it."""

import gc
from typing import TYPE_CHECKING, Any

import torch

from sslkit import distributed
from sslkit.allocator import freed_memory
from sslkit.errors import UserError

if TYPE_CHECKING:
    from sslkit.build import Parts


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a type of its own for it; the CPU's allocator and oneDNN, which compiles as it goes, only messages."""
    told = ("allocate memory", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in told)


def out_of_memory(parts: "Parts", raw: Any, error: RuntimeError) -> UserError:
    """The advice: the largest micro-batch whose step has just been seen to fit."""
    size = parts.config.micro_batch or parts.config.batch_size
    key = "micro_batch" if parts.config.micro_batch else "batch_size"
    asked = f"out of memory at {key}={size} with images of {parts.stores.image_size} px"
    if distributed.world() > 1:
        return UserError(f"{asked} on each of {distributed.world()} processes; set micro_batch={_divisors(size)[0]}")
    error.__traceback__ = None  # The traceback holds the failed step's tensors.
    # What the failed step took, kept, would be missing from whatever is not allocated by malloc.
    with freed_memory(keep=False):
        fits = _largest_that_fits(parts, raw)
    if fits is None:
        return UserError(f"{asked}; not even micro_batch=2 fits: use a smaller data.image_size or backbone")
    return UserError(
        f"{asked}; micro_batch={fits} fits (tried just now) and keeps the gradient of the whole batch. "
        f"Use micro_batch={fits}, or a smaller batch_size, data.image_size or backbone"
    )


def _largest_that_fits(parts: "Parts", raw: Any) -> int | None:
    from sslkit.step import train_step

    for size in _divisors(parts.config.micro_batch or parts.config.batch_size):
        _free(parts)
        try:
            train_step(parts, [raw], 0, micro_batch=size)
            return size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    return None


def _divisors(size: int) -> list[int]:
    """Sizes that divide `size`, from the largest on, each at most half of the one before, down to 2."""
    chosen = [size]
    for part in range(size // 2, 1, -1):
        if size % part == 0 and 2 * part <= chosen[-1]:
            chosen.append(part)
    return chosen[1:]


def _free(parts: "Parts") -> None:
    parts.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if parts.device.type == "cuda":
        torch.cuda.empty_cache()
