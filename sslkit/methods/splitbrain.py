"""Split-brain autoencoder: predict colour from lightness, and lightness from colour."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.backbones.layers import last_map, layer_names, tap
from sslkit.backbones.splitnet import SplitNet
from sslkit.config.base import Choice
from sslkit.config.task import Fitted, Task
from sslkit.machine import distributed
from sslkit.methods.base import Batch, Method, RunInfo
from sslkit.nn.colour import L_BINS, ab_bin, ab_bins, ab_table, lightness_bin
from sslkit.nn.losses import full_precision

PREFIX = "splitbrain:"
UNIFORM_SHARE = 0.5
"""λ of Zhang et al. 2016, Eq. 4: weight of the uniform distribution mixed into that of the bins."""
FREQUENCY_MOMENTUM = 0.99
"""Momentum of the moving average of the bins' frequencies."""


class SplitBrain(Method):
    """Predict an image's colour from its lightness and vice versa, with two half networks (Zhang et al. 2017).

    Split-Brain Autoencoders, arXiv:1611.09842: in CIE Lab, one network sees L and classifies ab into 313 bins, the
    other sees ab and classifies L into 50 bins of size 2, by cross entropy at every position; the representation is
    both halves' features together. Each half is a whole copy of the backbone (see `SplitNet`). Its last
    map predicts through a 1×1 convolution; if it is coarser than `stride`, each position predicts several.
    Beyond the paper, the pooled features add scores of their own, the same at all positions, so that
    layers after the pooling are trained too, as the paper's fc layers are.
    """

    class Config(Method.Config):
        stride: int = Field(default=8, ge=1)
        """Pixels per prediction, in one direction; targets are means over squares of that size."""
        rebalance: bool = False
        """Weight rare colours more (Zhang et al. 2016, Eq. 4, with frequencies averaged over steps, not smoothed)."""

    augment: ClassVar[str] = "weak"
    backbone: SplitNet
    table: Tensor
    frequency: Tensor

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        """Return nothing: the general rules serve a short run better than the paper's settings."""
        return {}

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone if isinstance(backbone, SplitNet) else SplitNet(backbone), info)
        self.backbone.normalise_by(info.mean, info.std)
        name = last_map(self.backbone, info.image_size)
        channels, map_side, _ = layer_names(self.backbone, info.image_size)[name]
        # The halves have the same structure, so a layer of one names that of the other.
        self.layer = name.partition(".")[2]
        bins = ab_bins()
        self.register_buffer("table", ab_table(bins))
        self.register_buffer("frequency", torch.full((len(bins),), 1 / len(bins)))
        self._seen: list[Tensor] = []
        side = -(-info.image_size // config.stride)
        width = self.backbone.width // 2
        self.to_colour = Predictor(channels, width, len(bins), map_side, side)
        self.to_lightness = Predictor(channels, width, L_BINS, map_side, side)

    @classmethod
    def trained_backbone(cls, backbone: Choice) -> Choice:
        if backbone.name.startswith(PREFIX):
            return backbone
        return Choice(name=PREFIX + backbone.name, options=backbone.options)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        lab = self.backbone.lab(batch.views)
        lightness, colour = self.backbone.inputs(lab)
        colours = self._predict(self.backbone.lightness, self.to_colour, lightness)
        lightnesses = self._predict(self.backbone.colour, self.to_lightness, colour)
        seen = F.adaptive_avg_pool2d(lab, (colours.shape[2], colours.shape[3]))
        ab, light = ab_bin(seen[:, 1:], self.table).flatten(), lightness_bin(seen[:, 0]).flatten()
        if self.config.rebalance and self.training:
            self._seen.append(shares(ab, len(self.frequency)))
        weights = rebalancing(self.frequency) if self.config.rebalance else None
        colour_loss, colour_accuracy = classified(colours, ab, weights)
        lightness_loss, lightness_accuracy = classified(lightnesses, light)
        return {
            "loss": colour_loss + lightness_loss,
            "colour_loss": colour_loss.detach(),
            "colour_accuracy": colour_accuracy,
            "lightness_loss": lightness_loss.detach(),
            "lightness_accuracy": lightness_accuracy,
        }

    def _predict(self, half: nn.Module, head: nn.Module, images: Tensor) -> Tensor:
        with tap(half, self.layer) as last:
            features = half(images)
        out: Tensor = head(last.output, features)
        return out

    def after_step(self, progress: float) -> None:
        if self._seen:
            now = distributed.mean(torch.stack(self._seen).mean(0))
            self.frequency.lerp_(now, 1 - FREQUENCY_MOMENTUM)
            self._seen.clear()


class Predictor(nn.Module):
    """Scores of every bin on a grid of at least `side` × `side` positions, [N, bins, h, w].

    Computed from the last map, [N, channels, map_side, map_side], and from the features, [N, width].
    """

    def __init__(self, channels: int, width: int, bins: int, map_side: int, side: int) -> None:
        super().__init__()
        self.pool = max(1, map_side // side)
        self.upscale = -(-side // (map_side // self.pool))
        self.local = nn.Conv2d(channels, bins * self.upscale**2, 1)
        self.whole = nn.Linear(width, bins, bias=False)

    def forward(self, last: Tensor, features: Tensor) -> Tensor:
        local = F.pixel_shuffle(self.local(F.avg_pool2d(last, self.pool)), self.upscale)
        out: Tensor = local + self.whole(features)[:, :, None, None]
        return out


def classified(scores: Tensor, bins: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean cross entropy over positions, weighted by the true bin, and unweighted accuracy.

    scores: [N, K, h, w]; bins: int64 [N·h·w]; weights: [K]. Computed in float32 under autocast; float64 stays.
    """
    # Cross entropy of rows, because that of maps has no deterministic version on the GPU.
    rows = full_precision(scores.movedim(1, -1).flatten(0, 2))
    entropy = F.cross_entropy(rows, bins, reduction="none")
    loss = entropy.mean() if weights is None else (entropy * weights[bins]).mean()
    return loss, (rows.argmax(1) == bins).float().mean()


def rebalancing(frequency: Tensor) -> Tensor:
    """Return weights of the bins from their frequencies p, [K] -> [K] (Zhang et al. 2016, Eq. 4).

    Proportional to 1/((1-λ)p + λ/K), λ = 1/2, with mean 1 over the positions of images.
    """
    weights = 1 / ((1 - UNIFORM_SHARE) * frequency + UNIFORM_SHARE / len(frequency))
    return weights / (frequency * weights).sum()


def shares(bins: Tensor, count: int) -> Tensor:
    """Return the share of the positions in each of `count` bins, int64 [M] -> float32 [count]."""
    one = torch.ones(len(bins), device=bins.device)
    return torch.zeros(count, device=bins.device).index_add_(0, bins, one) / len(bins)
