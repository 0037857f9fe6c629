"""Create optimizers by name, with parameter groups for weight decay and learning rate."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sslkit.config.run import Optimizer
from sslkit.plugins import suggest
from sslkit.training.optim.lars import LARS, at_once, start_momentum

BUILTIN = ("sgd", "adam", "adamw", "lars")


def known_optimizer(name: str) -> str | None:
    """Return None if `name` is sgd, adam, adamw, lars or a usable timm:NAME; otherwise a message that says why not."""
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
    """Return an optimizer of every trainable parameter of `module`, at learning rate `lr`.

    Biases and normalisation parameters, recognised by having one dimension, are neither decayed nor adapted by LARS
    (as in SimCLR and BYOL). constant: names of the children of `module` whose learning rate `Schedule` keeps at its
    peak. sgd is momentum SGD without Nesterov. timm's optimizers keep timm's default betas unless `settings.betas`
    differs from Adam's defaults. torch's own optimizers and LARS update all tensors at once (fused if the device
    supports it, else foreach), deterministically.
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
    # timm's schedulers multiply the learning rate of a group by its lr_scale.
    exempt = {"weight_decay": 0.0} | ({"lr_scale": settings.exempt_lr / settings.lr} if settings.exempt_lr else {})
    groups = [
        {
            "params": [p for constant_lr, p in trained if constant_lr == in_group and (p.ndim > 1) == decayed],
            "constant_lr": in_group,
            **({"weight_decay": settings.weight_decay} if decayed else exempt),
        }
        for in_group in (False, True)
        for decayed in (True, False)
    ]
    return [group for group in groups if group["params"]]


def _sgd(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(groups, **options)
    optimizer.register_step_pre_hook(_start_all_momentum)
    return optimizer


def _start_all_momentum(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        start_momentum(optimizer, (p for p in group["params"] if p.grad is not None), group)


def _lars(groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """Return LARS with trust coefficient 1e-3; biases and normalisation parameters are updated by plain SGD."""
    for group in groups:
        # Weights must be adapted even if their decay is 0.
        group["always_adapt"] = group["params"][0].ndim > 1
    return LARS(groups, trust_coeff=1e-3, **options)


def _timm_optimizer(
    groups: list[dict[str, Any]], settings: Optimizer, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    default = Optimizer.model_fields["betas"].default
    betas: dict[str, Any] = {} if settings.betas == default else {"betas": settings.betas}
    name = settings.name.removeprefix("timm:")
    return create_optimizer_v2(groups, name, lr, weight_decay, momentum=settings.momentum, **betas)
