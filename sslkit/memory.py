"""When memory runs out: say by how much to reduce what, after trying it."""

import gc
from typing import TYPE_CHECKING, Any

import torch

from sslkit.errors import UserError

if TYPE_CHECKING:
    from sslkit.engine import Parts


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a type of its own for it; the CPU allocator only a message."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def out_of_memory(parts: "Parts", raw: Any, error: RuntimeError) -> UserError:
    """The advice: the largest halving of the batch whose step has just been seen to fit."""
    size = parts.config.batch_size
    error.__traceback__ = None  # The traceback holds the failed step's tensors.
    fits = _largest_that_fits(parts, raw)
    asked = f"out of memory at batch_size={size} with images of {parts.stores.image_size} px"
    if fits is None:
        return UserError(f"{asked}; not even batch_size=2 fits: use a smaller data.image_size or backbone")
    same = parts.config.accumulate * size // fits
    return UserError(
        f"{asked}; batch_size={fits} fits (tried just now). Use batch_size={fits}, with accumulate={same} "
        f"for as many images an optimizer step, or a smaller data.image_size or backbone"
    )


def _largest_that_fits(parts: "Parts", raw: Any) -> int | None:
    from sslkit.engine import train_step

    size = parts.config.batch_size // 2
    while size >= 2:
        _free(parts)
        try:
            train_step(parts, [type(raw)(*(t if t is None else t[:size] for t in raw))], 0)
            return size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        size //= 2
    return None


def _free(parts: "Parts") -> None:
    parts.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if parts.device.type == "cuda":
        torch.cuda.empty_cache()
