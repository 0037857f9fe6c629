"""Training for a few steps on one batch, for tests of what a method learns."""

import torch
from torch import Tensor

from sslkit.methods.base import Batch, Method


def steps_on(
    batch: Batch, method: Method, optimizer: torch.optim.Optimizer, steps: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train on one batch, with `after_step` as in a run; return the results of `forward` at the first and last step."""
    outs = []
    for step in range(steps):
        optimizer.zero_grad()
        out = method(batch)
        out["loss"].backward()
        optimizer.step()
        method.after_step((step + 1) / steps)
        outs.append({name: value.detach() for name, value in out.items()})
    return outs[0], outs[-1]
