"""Count the floating-point operations of a network."""

import torch
from torch import nn

from sslkit.machine.precision import uncompiled
from sslkit.nn.modes import eval_mode


def flops(net: nn.Module, image_size: int) -> int:
    """FLOPs of `net` in eval mode for one image of that size, two per multiply-add; `net` is left unchanged."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(net.parameters(), torch.empty(0)).device
    with uncompiled(), eval_mode(net), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, image_size, image_size, device=device))
    count: int = counter.get_total_flops()
    return count


def _flops_or_none(net: nn.Module, image_size: int) -> int | None:
    """FLOPs, or None for a network that rejects this size, such as a transformer with fixed position embeddings."""
    try:
        return flops(net, image_size)
    except (RuntimeError, ValueError, AssertionError):
        return None
