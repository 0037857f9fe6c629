"""Optimizers, learning-rate schedules, and optimizer state as plain tensors and JSON."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sslkit.config.run import Optimizer
from sslkit.plugins import suggest
from sslkit.training.optim.lars import LARS, at_once, start_momentum

BUILTIN = ("sgd", "adam", "adamw", "lars")


def known_optimizer(name: str) -> str | None:
    """None if `name` is sgd, adam, adamw, lars or timm:NAME; else a sentence that says what is wrong."""
    if name in BUILTIN:
        return None
    if not name.startswith("timm:"):
        return f"no optimizer is called {name!r}; {suggest(name, [*BUILTIN, 'timm:NAME'])}"
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

    base = name.removeprefix("timm:").removeprefix("lookahead_")
    names = [str(n) for n in list_optimizers()]
    if base not in names:
        return f"timm has no optimizer called {base!r}; {suggest(base, names)}"
    if base.startswith("kron"):
        return f"{base} draws random numbers that a checkpoint cannot keep; choose another optimizer"
    if get_optimizer_info(base).second_order:
        return f"{base} needs second-order gradients, which a run does not compute; choose another optimizer"
    try:
        get_optimizer_class(base)
    except (ImportError, AssertionError) as error:
        return f"timm's {base} cannot be used here ({error}); install what it needs, or choose another"
    return None


def make_optimizer(
    module: nn.Module, settings: Optimizer, lr: float, constant: Iterable[str] = ()
) -> torch.optim.Optimizer:
    """The optimizer of every parameter of `module` that takes a gradient, at learning rate `lr`.

    Biases and normalisation parameters, known by having one dimension, are not decayed, nor adapted by LARS
    (as in SimCLR and BYOL). `constant` names the parts of `module` whose rate `Schedule` keeps at its peak. sgd
    is momentum SGD without Nesterov; timm's optimizers keep timm's own betas unless others than Adam's usual
    ones are set. torch's own optimizers and LARS update all tensors at once (fused where the device can, else
    foreach), deterministically.
    """
    groups = _groups(module, settings, tuple(constant))
    kernels = at_once(p for group in groups for p in group["params"])
    shared: dict[str, Any] = {"lr": lr, "weight_decay": settings.weight_decay}
    if settings.name == "sgd":
        return _sgd(groups, momentum=settings.momentum, **shared, **kernels)
    if settings.name == "lars":
        return _lars(groups, momentum=settings.momentum, **shared)
    if settings.name in ("adam", "adamw"):
        adam = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
        return adam(groups, betas=settings.betas, **shared, **kernels)
    return _timm_optimizer(groups, settings, **shared)


def _groups(module: nn.Module, settings: Optimizer, constant: tuple[str, ...]) -> list[dict[str, Any]]:
    trained = [(name.partition(".")[0] in constant, p) for name, p in module.named_parameters() if p.requires_grad]
    # timm's schedules multiply the rate of a group by its lr_scale.
    exempt = {"weight_decay": 0.0} | ({"lr_scale": settings.exempt_lr / settings.lr} if settings.exempt_lr else {})
    kinds = [
        {
            "params": [p for held, p in trained if held == stays and (p.ndim > 1) == decayed],
            "constant_lr": stays,
            **({"weight_decay": settings.weight_decay} if decayed else exempt),
        }
        for stays in (False, True)
        for decayed in (True, False)
    ]
    return [group for group in kinds if group["params"]]


def _sgd(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(groups, **options)
    optimizer.register_step_pre_hook(_start_all_momentum)
    return optimizer


def _start_all_momentum(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        start_momentum(optimizer, (p for p in group["params"] if p.grad is not None), group)


def _lars(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """LARS with trust coefficient 1e-3 that leaves biases and normalisation parameters to SGD."""
    for group in groups:
        # Decay 0 must still adapt the weights.
        group["always_adapt"] = group["params"][0].ndim > 1
    return LARS(groups, trust_coeff=1e-3, **options)


def _timm_optimizer(
    groups: list[dict[str, Any]], settings: Optimizer, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    usual = Optimizer.model_fields["betas"].default
    betas: dict[str, Any] = {} if settings.betas == usual else {"betas": settings.betas}
    name = settings.name.removeprefix("timm:")
    return create_optimizer_v2(groups, name, lr, weight_decay, momentum=settings.momentum, **betas)
