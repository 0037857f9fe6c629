"""Projection heads and predictors: multi-layer perceptrons between backbone and loss."""

from collections.abc import Callable
from itertools import pairwise

from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "hardswish": nn.Hardswish}
"""Activations by the name used in a method's settings."""


def mlp(
    *dims: int,
    norm: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float = 0.0,
    last_bias: bool = True,
    last_norm: bool = False,
) -> nn.Sequential:
    """Build a multi-layer perceptron over rows: dims = (input, hidden..., output), [N, dims[0]] -> [N, dims[-1]].

    Hidden layers are Linear, BatchNorm1d (unless `norm` is off), activation, dropout; the last is Linear
    only, followed with `last_norm` by a batch norm that scales but does not shift. Two dims make a linear head, one
    the identity. A Linear followed by batch norm has no bias, because the norm would subtract it.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(dims[:-1]):
        layers += [nn.Linear(fan_in, fan_out, bias=not norm)]
        layers += [nn.BatchNorm1d(fan_out)] if norm else []
        layers += [activation()]
        layers += [nn.Dropout(dropout)] if dropout else []
    if len(dims) > 1:
        layers += [nn.Linear(dims[-2], dims[-1], bias=last_bias and not last_norm)]
        layers += [_unshifted_norm(dims[-1])] if last_norm else []
    return nn.Sequential(*layers)


def _unshifted_norm(width: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(width)
    norm.bias.requires_grad_(False)
    return norm
