"""Learning-rate and weight-decay schedules, as pure functions of the step."""

import math

import torch

from sslkit.config.run import Optimizer
from sslkit.nn.schedules import cosine


def scaled_lr(settings: Optimizer, batch: int) -> float:
    """Return the peak learning rate for `batch` images per optimizer step."""
    scale = {"none": 1.0, "linear": batch / 256, "sqrt": math.sqrt(batch)}
    return settings.lr * scale[settings.lr_scaling]


class Schedule:
    """Learning rate and weight decay as pure functions of the step, so that there is no state to checkpoint."""

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
            # The first step has 1 / (warmup + 1) of the peak, not 0, and the warm-up ends at the peak.
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
                group["weight_decay"] = cosine(self._decay, self._decay_end, step / self._steps)
        number: float = self._optimizer.param_groups[0]["lr"]
        return number


def make_schedule(optimizer: torch.optim.Optimizer, settings: Optimizer, steps: int, steps_per_epoch: int) -> Schedule:
    """Return a linear warm-up to the learning rate of `optimizer`, then a cosine to zero at `steps`, or a constant.

    Warm-up step i has (i + 1)/(warmup + 1) of the peak. The warm-up takes `settings.warmup_epochs`, but at
    most a tenth of the run.
    """
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), steps // 10)
    return Schedule(optimizer, settings, steps, warmup)
