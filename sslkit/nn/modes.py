"""Temporary states: evaluation mode, and random numbers of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    pass


@contextmanager
def own_random(seed: int) -> Iterator[None]:
    """torch's global random numbers start at `seed` inside and go on afterwards as if nothing had been."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Training goes on afterwards as if nothing had been: every module gets its own mode back."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
