"""Training written out slowly in plain torch, without the engine: what a run on one CPU must compute to the bit.

Only what a run is made of comes from sslkit: its settings, its images, the method, the backbone and the augmentation.
Order, seeds, learning rates, optimizers and the loop are written here once more, from their documentation.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from sslkit import plugins
from sslkit.backbones import create_backbone
from sslkit.config.run import Optimizer, RunConfig
from sslkit.data import Stores, in_order, open_stores
from sslkit.methods import Batch, Method, RunInfo


def reference_training(config: RunConfig) -> tuple[list[float], Method]:
    """The loss of every step of a run in float32 on one CPU, and the method as it is after the last."""
    stores = open_stores(config.data, config.eval_data, config.seed)
    torch.manual_seed(config.seed)
    method = _method(config, stores).to(memory_format=torch.channels_last)
    augmentation = plugins.find("augmentations", config.augment.name)(
        config.augment.options, stores.image_size, stores.mean, stores.std
    )
    images = torch.cat([batch.images for batch in in_order(stores.pretrain, batch_size=64, device="cpu")])
    labels = None if stores.pretrain.labels is None else torch.from_numpy(stores.pretrain.labels)
    steps_per_epoch = len(images) // config.batch_size
    steps = steps_per_epoch * config.epochs
    optimizer = ReferenceOptimizer(method, config.optimizer, config.batch_size, steps, steps_per_epoch)
    losses = []
    for step, rows in enumerate(_rows(len(images), config)):
        generator = _seeded(config.seed, step)
        views = augmentation(images[rows].contiguous(memory_format=torch.channels_last), generator)
        out = method(Batch(views, rows, labels[rows] if method.uses_labels else None))
        method.zero_grad()
        out["loss"].backward()
        optimizer.step(step)
        method.after_step((step + 1) / steps)
        losses.append(out["loss"].item())
    return losses, method


def _method(config: RunConfig, stores: Stores) -> Method:
    method_class = plugins.find("methods", config.method.name)
    backbone = create_backbone(method_class.trained_backbone(config.backbone), image_size=stores.image_size)
    images, classes = len(stores.pretrain), len(stores.pretrain.classes)
    return method_class(
        config.method.options, backbone, RunInfo(images, classes, stores.image_size, stores.mean, stores.std)
    )


def _rows(images: int, config: RunConfig) -> Iterator[Tensor]:
    """Row numbers of each batch: a permutation an epoch, drawn by Philox from (seed, epoch, 0x0DE2)."""
    for epoch in range(config.epochs):
        seeds = np.random.SeedSequence([config.seed, epoch, 0x0DE2])
        order = torch.from_numpy(np.random.Generator(np.random.Philox(seeds)).permutation(images))
        for start in range(0, images - config.batch_size + 1, config.batch_size):
            yield order[start : start + config.batch_size]


def _seeded(seed: int, step: int) -> torch.Generator:
    """Seed of a step: from (seed, step, rank, number of the micro-batch), here of the first of one process."""
    drawn = np.random.SeedSequence([seed, step, 0, 0]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(drawn) // 2)
    return torch.Generator().manual_seed(int(drawn) // 2)


class ReferenceOptimizer:
    """SGD and AdamW of torch, and LARS by scaling each gradient for SGD, at rates worked out anew for every step.

    One optimizer a parameter: what the settings want of weights, of biases and of frozen rates is decided one by one.
    """

    def __init__(self, method: Method, settings: Optimizer, batch: int, steps: int, steps_per_epoch: int) -> None:
        scale = {"none": 1.0, "linear": batch / 256, "sqrt": math.sqrt(batch)}[settings.lr_scaling]
        self.settings, self.steps, self.peak = settings, steps, settings.lr * scale
        self.exempt_peak = self.peak if settings.exempt_lr is None else settings.exempt_lr / settings.lr * self.peak
        self.warmup = min(round(settings.warmup_epochs * steps_per_epoch), steps // 10)
        # Weights before biases, those of constant rate last: the order in which the whole gradient's norm is summed.
        named = [(name.split(".")[0] in method.constant_lr, p) for name, p in method.named_parameters()]
        order = sorted(((held, p.ndim <= 1, p) for held, p in named if p.requires_grad), key=lambda entry: entry[:2])
        self.parameters = [(held, exempt, p, self._plain(p)) for held, exempt, p in order]

    def _plain(self, p: nn.Parameter) -> torch.optim.Optimizer:
        if self.settings.name in ("sgd", "lars"):
            return torch.optim.SGD([p], momentum=self.settings.momentum, fused=True)
        return torch.optim.AdamW([p], betas=self.settings.betas, fused=True)

    @torch.no_grad()
    def step(self, step: int) -> None:
        if self.settings.clip_grad:
            nn.utils.clip_grad_norm_([p for _, _, p, _ in self.parameters], self.settings.clip_grad)
        for held, exempt, p, plain in self.parameters:
            if p.grad is None:
                continue
            (group,) = plain.param_groups
            group["lr"] = self._rate(step, self.exempt_peak if exempt else self.peak, held)
            group["weight_decay"] = 0.0 if exempt else self._decay(step)
            if self.settings.name == "lars" and not exempt:
                self._adapt(p, group["weight_decay"])
                group["weight_decay"] = 0.0
            plain.step()

    def _rate(self, step: int, peak: float, held: bool) -> float:
        """Linear warm-up, then along a cosine to zero, unless the settings or the method hold it at the peak."""
        if step < self.warmup:
            return peak * (step + 1) / (self.warmup + 1)
        if held or self.settings.schedule == "constant":
            return peak
        return peak * (1 + math.cos(math.pi * (step - self.warmup) / max(2, self.steps - self.warmup))) / 2

    def _decay(self, step: int) -> float:
        start, end = self.settings.weight_decay, self.settings.weight_decay_end
        if end is None:
            return start
        return end + (start - end) * (1 + math.cos(math.pi * step / self.steps)) / 2

    def _adapt(self, p: nn.Parameter, decay: float) -> None:
        """You et al. 2017, Algorithm 1, with trust coefficient 0.001: the gradient at the scale of its weights."""
        weight, grad = p.norm(), p.grad.norm()
        p.grad += decay * p
        if weight > 0 and grad > 0:
            p.grad *= 1e-3 * weight / (grad + decay * weight + 1e-8)
