"""The contract of a loss under mixed precision."""

from collections.abc import Callable

import torch
from torch import Tensor

from sslkit.testing.contract import expect


def check_precision(loss: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Check that a loss is computed in float32 under autocast and for half inputs, and that float64 stays.

    inputs: arguments of the loss in float64, such as two embeddings [N, D]. See `sslkit.nn.losses.full_precision`.
    """
    inputs = tuple(z.detach() for z in inputs)
    exact = loss(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(*(z.float() for z in inputs))
    half = loss(*(z.bfloat16() for z in inputs))
    expect(exact.dtype == torch.float64, f"float64 must stay, not become {exact.dtype}")
    expect(mixed.dtype == torch.float32, f"under autocast a loss must be float32, not {mixed.dtype}")
    expect(half.dtype == torch.float32, f"of half inputs a loss must be float32, not {half.dtype}")
    close = torch.allclose(mixed.double(), exact, rtol=1e-5, atol=1e-6)
    expect(close, f"under autocast a loss must be as exact as float32, but is {mixed.item()}, not {exact.item()}")
