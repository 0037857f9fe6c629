"""Momentum encoders: the target of BYOL, the key encoder of MoCo."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from sslkit.nn.schedules import cosine

M = TypeVar("M", bound=nn.Module)


def momentum_encoder(module: M) -> M:
    """Return a copy that shares no tensor with `module`, needs no gradient and keeps its mode (train or eval)."""
    return deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow ← momentum·slow + (1 - momentum)·fast, for every parameter.

    Buffers are left unchanged: the batch-norm statistics of a momentum encoder are those of its own forward passes,
    as in BYOL's reference code (deepmind-research/byol, `_update_fn`: only parameters are averaged).
    """
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)


def cosine_momentum(base: float, progress: float) -> float:
    """Return BYOL's schedule (Grill et al. 2020, 3.3): 1 - (1 - base)·(cos(π·progress) + 1)/2, from base to 1.

    progress: k/K, the share of the training steps done, 0 to 1.
    """
    return cosine(base, 1.0, progress)
