"""LARS, all tensors at a time and without a look at the device."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

BLOCK = 2**20
"""Numbers that a CPU updates at a time: they are read five times, and so come from its cache four times."""


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling: momentum SGD on gradients brought to the scale of their weights.

    You et al. 2017, Eq. 6 and Algorithm 1, except that the rate multiplies after the momentum, as in BYOL's code and
    torch's SGD: the two are equal while the rate is constant. State and settings of groups are named as by timm's Lars,
    and a step is the same. The parameters of a group are of one type, on one device.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        trust_coeff: float = 1e-3,
        eps: float = 1e-8,
        always_adapt: bool = False,
    ) -> None:
        """`always_adapt`: adapt a group also without decay; else one without decay is left to plain SGD.

        trust_coeff: η of Eq. 6; eps is added to its denominator.
        """
        settings = {"momentum": momentum, "weight_decay": weight_decay, "trust_coeff": trust_coeff, "eps": eps}
        super().__init__(params, {"lr": lr, "always_adapt": always_adapt} | settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; the gradients are used up.

        `closure` computes the loss anew, which is then returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for params in _blocks([p for p in group["params"] if p.grad is not None]):
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads: list[Any] = [p.grad for p in params]
        if group["weight_decay"] or group["always_adapt"]:
            _adapt(params, grads, group["weight_decay"], group["trust_coeff"], group["eps"])
        start_momentum(self, params, group)
        sgd(
            params,
            grads,
            [self.state[p].get("momentum_buffer") for p in params],
            lr=group["lr"],
            momentum=group["momentum"],
            # Already in the adapted gradients.
            weight_decay=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            **at_once(params),
        )


def _blocks(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Whole tensors of about BLOCK numbers together on the CPU; elsewhere all of them, in as few kernels as can be."""
    block: list[Tensor] = []
    numbers = 0
    for p in params:
        block.append(p)
        numbers += p.numel() if p.device.type == "cpu" else 0
        if numbers > BLOCK:
            yield block
            block, numbers = [], 0
    if block:
        yield block


def _adapt(params: list[Tensor], grads: list[Tensor], decay: float, trust: float, eps: float) -> None:
    """g becomes (g + decay·w) · trust·‖w‖ / (‖g‖ + decay·‖w‖ + eps), of each tensor; unscaled where ‖w‖ or ‖g‖ is 0.

    In place: to allocate room for another set of gradients costs the CPU more than the arithmetic.
    """
    weight, grad = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, grads))
    ratio = trust * weight / (grad + decay * weight + eps)
    ratio = torch.where((weight > 0) & (grad > 0), ratio, 1.0)
    torch._foreach_add_(grads, params, alpha=decay)
    torch._foreach_mul_(grads, ratio.unbind())


def start_momentum(optimizer: torch.optim.Optimizer, params: Iterable[Tensor], group: dict[str, Any]) -> None:
    """Momentum of zero for parameters that have none: torch's fused SGD fails where some have it and some do not."""
    if group["momentum"]:
        for p in params:
            if "momentum_buffer" not in optimizer.state[p]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def at_once(params: Iterable[Tensor]) -> dict[str, Any]:
    """torch's setting for one kernel over all tensors: fused where the device has it, else foreach.

    Fused kernels of the CPU take for granted that gradients lie in memory like their parameters, as autograd's do.
    """
    from torch.optim.optimizer import _default_to_fused_or_foreach

    fused, _ = _default_to_fused_or_foreach(list(params), differentiable=False, use_fused=True)
    return {"fused": True} if fused else {"foreach": True}
