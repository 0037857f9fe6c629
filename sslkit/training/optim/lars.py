"""LARS that updates all tensors at once and never synchronises host and device."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

BLOCK = 2**20
"""Elements that a CPU updates at a time: an update reads them five times, four of them from the CPU's cache."""


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling: momentum SGD on gradients rescaled to the norm of their weights.

    You et al. 2017, Eq. 6 and Algorithm 1, except that the learning rate is applied after the momentum, as in BYOL's
    code and torch's SGD; both forms are equal while the rate is constant. State and group settings have the names of
    timm's Lars, and a step gives the same result. The parameters of a group must share one dtype and one device.
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
        """
        trust_coeff: η of Eq. 6. eps: added to its denominator.
        always_adapt: adapt groups without weight decay too; otherwise they are updated by plain SGD.
        """
        settings = {"momentum": momentum, "weight_decay": weight_decay, "trust_coeff": trust_coeff, "eps": eps}
        super().__init__(params, {"lr": lr, "always_adapt": always_adapt} | settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; gradients are overwritten.

        closure: recomputes the loss, which is then returned.
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
            # The adapted gradients already include the weight decay.
            weight_decay=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            **at_once(params),
        )


def _blocks(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors into blocks of about BLOCK elements on the CPU; into one block elsewhere, for few kernels."""
    block: list[Tensor] = []
    elements = 0
    for p in params:
        block.append(p)
        elements += p.numel() if p.device.type == "cpu" else 0
        if elements > BLOCK:
            yield block
            block, elements = [], 0
    if block:
        yield block


def _adapt(params: list[Tensor], grads: list[Tensor], decay: float, trust: float, eps: float) -> None:
    """Replace each g by (g + decay·w) · trust·‖w‖ / (‖g‖ + decay·‖w‖ + eps), per tensor; unscaled if ‖w‖ or ‖g‖ is 0.

    In place, because allocating another set of gradients costs more time on the CPU than the arithmetic.
    """
    weight, grad = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, grads))
    ratio = trust * weight / (grad + decay * weight + eps)
    ratio = torch.where((weight > 0) & (grad > 0), ratio, 1.0)
    torch._foreach_add_(grads, params, alpha=decay)
    torch._foreach_mul_(grads, ratio.unbind())


def start_momentum(optimizer: torch.optim.Optimizer, params: Iterable[Tensor], group: dict[str, Any]) -> None:
    """Set missing momentum buffers to zero: torch's fused SGD fails if only some parameters have one."""
    if group["momentum"]:
        for p in params:
            if "momentum_buffer" not in optimizer.state[p]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def at_once(params: Iterable[Tensor]) -> dict[str, Any]:
    """Return torch's setting for one kernel over all tensors: fused if the device supports it, else foreach.

    Fused CPU kernels assume that gradients have the strides of their parameters, as autograd's have.
    """
    from torch.optim.optimizer import _default_to_fused_or_foreach

    fused, _ = _default_to_fused_or_foreach(list(params), differentiable=False, use_fused=True)
    return {"fused": True} if fused else {"foreach": True}
