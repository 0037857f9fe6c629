"""Optimizers, learning-rate schedules, and optimizer state as plain tensors and JSON."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.config import Optimizer
from sslkit.lars import LARS, at_once, start_momentum
from sslkit.plugins import suggest

BUILTIN = ("sgd", "adam", "adamw", "lars")
NOT_STATE = ("params", "lr", "initial_lr", "fused", "foreach")
"""What a group holds that is the module's, the schedule's or the machine's: a checkpoint goes on with other kernels."""


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


def scaled_lr(settings: Optimizer, batch: int) -> float:
    """The peak learning rate for a batch of `batch` images an optimizer step."""
    scale = {"none": 1.0, "linear": batch / 256, "sqrt": math.sqrt(batch)}
    return settings.lr * scale[settings.lr_scaling]


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


class Schedule:
    """Sets learning rate and weight decay as a pure function of the step, so there is nothing to checkpoint."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Optimizer, steps: int, warmup: int) -> None:
        from timm.scheduler import CosineLRScheduler

        self._optimizer = optimizer
        self._steps, self._warmup = steps, warmup
        self._decay, self._decay_end = settings.weight_decay, settings.weight_decay_end
        peak = optimizer.param_groups[0]["lr"]
        cosine = settings.schedule == "cosine"
        self._scheduler = CosineLRScheduler(
            optimizer,
            t_initial=max(2, steps - warmup),
            lr_min=0 if cosine else peak,
            warmup_t=warmup,
            # One part of warmup + 1: the first step already learns, and the warm-up ends at the peak.
            warmup_lr_init=peak / (warmup + 1),
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def set(self, step: int) -> float:
        """Set and return the learning rate of optimizer step `step`, counted from 0."""
        self._scheduler.step_update(step)
        for group in self._optimizer.param_groups:
            if group["constant_lr"] and step >= self._warmup:
                group["lr"] = group["initial_lr"] * group.get("lr_scale", 1.0)
            if self._decay_end is not None and group["weight_decay"]:
                group["weight_decay"] = _cosine(self._decay, self._decay_end, step / self._steps)
        return self._optimizer.param_groups[0]["lr"]


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (math.cos(math.pi * progress) + 1) / 2


def make_schedule(optimizer: torch.optim.Optimizer, settings: Optimizer, steps: int, steps_per_epoch: int) -> Schedule:
    """Linear warm-up to the rate that `optimizer` was made with, then cosine to zero at `steps`, or constant.

    Warm-up step i has (i + 1)/(warmup + 1) of the peak. The warm-up takes `settings.warmup_epochs`, but at
    most a tenth of the run.
    """
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), steps // 10)
    return Schedule(optimizer, settings, steps, warmup)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state without pickle: contiguous tensors for safetensors, and the rest for JSON.

    Learning rates are left out: they are the schedule's, a function of the step.
    """
    tensors: dict[str, Tensor] = {}
    layouts: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for owner, (home, _) in _homes(optimizer).items():
        for name, value in home.items():
            key = f"{owner}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value.detach().contiguous()
                layouts[key] = {"stride": list(value.stride()), "on_cpu": value.device.type == "cpu"}
            elif _is_running(name, value):
                plain[key] = value
    return tensors, {"layouts": layouts, "plain": plain}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Put back what `optimizer_tensors` gave, into an optimizer made in the same way for the same module.

    Every tensor gets back the strides and the kind of device (its parameter's, or the CPU) that it had, so
    that training goes on bit for bit where the kernels are the same. Raises ValueError where the parameters do
    not correspond.
    """
    _state(optimizer).clear()
    homes = _homes(optimizer)
    for key, saved in [*tensors.items(), *rest["plain"].items()]:
        owner, _, name = key.partition(".")
        if owner not in homes:
            raise ValueError(f"saved optimizer state {key!r} has no place in this optimizer")
        home, device = homes[owner]
        if key in rest["layouts"]:
            home[name] = _laid_out(saved, rest["layouts"][key], device, name in _on_device(optimizer))
        elif name not in NOT_STATE:
            home[name] = tuple(saved) if isinstance(home.get(name), tuple) else saved


def _homes(optimizer: torch.optim.Optimizer) -> dict[str, tuple[dict[str, Any], torch.device]]:
    """The dictionaries that hold state, with their device: "3" is parameter 3's, "group1" that of group 1."""
    state = _state(optimizer)
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    homes = {str(i): (state[p], p.device) for i, p in enumerate(parameters)}
    return homes | {f"group{i}": (group, group["params"][0].device) for i, group in enumerate(groups)}


def _state(optimizer: torch.optim.Optimizer) -> Any:
    # timm's Lookahead wraps an optimizer that keeps the state of both.
    return getattr(optimizer, "_base_optimizer", optimizer).state


def _on_device(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Tensors that stand beside their parameter whoever saved them: fused Adam counts its steps there."""
    return ("step",) if optimizer.defaults.get("fused") else ()


def _laid_out(saved: Tensor, layout: Mapping[str, Any], device: torch.device, beside: bool) -> Tensor:
    device = torch.device("cpu") if layout["on_cpu"] and not beside else device
    empty = torch.empty_strided(tuple(saved.shape), tuple(layout["stride"]), dtype=saved.dtype, device=device)
    return empty.copy_(saved)


def _is_running(key: str, value: Any) -> bool:
    """Whether an entry is a plain value, such as a step count, and state."""
    if key in NOT_STATE:
        return False
    items = value if isinstance(value, list | tuple) else [value]
    return all(item is None or isinstance(item, bool | int | float | str) for item in items)
