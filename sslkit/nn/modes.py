"""Context managers: evaluation mode, and an independent random state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def own_random(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside the context, and restore them afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put the network into eval mode inside the context, and restore every module's mode afterwards."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
