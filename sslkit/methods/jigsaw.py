"""Jigsaw: predict the order in which the nine tiles of an image were arranged."""

from functools import cache
from itertools import permutations as all_orders
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.augment.ops import LUMA
from sslkit.config.task import Fitted, Task
from sslkit.methods.base import Batch, Method, RunInfo
from sslkit.methods.patches import GRID, check_tiles, gap_size, tile_size, tiles
from sslkit.nn.heads import mlp

TILES = GRID * GRID
FLAT = 1e-4
"""Variance of a tile, in units of normalised views, below which only rounding to 8 bits remains."""


class Jigsaw(Method):
    """Predict in which of many orders the nine tiles of an image were arranged (Noroozi and Favaro 2016).

    Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, arXiv:1603.09246: each tile passes
    through the backbone separately (the context-free network, Section 3.2), and only their joint features predict the
    order, one of a set whose members differ as much as possible (Algorithm 1). Against shortcuts (Section 4.2):
    random gaps between tiles, every tile normalised separately, some images in grey. The layers after the
    backbone are fc6 to fc8 of the authors' code, with batch norm instead of dropout.
    """

    class Config(Method.Config):
        permutations: int = Field(default=1000, ge=2, le=10_000)
        """Number of orders to distinguish; of 6 to 1000, 1000 gave the best features in the paper."""
        tile: int | None = Field(default=None, ge=8)
        """Height and width of a tile as the backbone sees it, in pixels; null: the paper's ratio, 64 of 225."""
        gap: int | None = Field(default=None, ge=0)
        """Mean gap between neighbouring tiles, in pixels of the view; null: the paper's ratio, 11 of 225."""
        grayscale: float = Field(default=0.3, ge=0, le=1)
        """Share of the images that are converted to grey."""
        dim: int = Field(default=1024, ge=1)
        """Width of fc6, computed from each tile's features."""
        hidden: int = Field(default=4096, ge=1)
        """Width of fc7, computed from all tiles."""

    augment: ClassVar[str] = "weak"
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer.name": "sgd",
        "optimizer.lr": 0.01,
        "optimizer.weight_decay": 5e-4,
        "optimizer.momentum": 0.9,
    }
    permutations: Tensor

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        """Return nothing: the general rules serve a short run better than the paper's settings."""
        return {}

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        super().__init__(config, backbone, info)
        self.register_buffer("permutations", torch.tensor(distant_permutations(config.permutations)))
        self.tile = tile_size(info.image_size) if config.tile is None else config.tile
        self.gap = gap_size(info.image_size) if config.gap is None else config.gap
        check_tiles(backbone, self.tile)
        self.tile_head = nn.Sequential(*mlp(self.width, config.dim), nn.ReLU())
        self.head = mlp(TILES * config.dim, config.hidden, config.permutations)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = batch.views
        order = torch.randint(len(self.permutations), (len(views),), device=views.device)
        chosen = torch.rand(len(views), device=views.device) < self.config.grayscale
        tiled = standardised(tiles(in_grey(views, chosen, self.info.std), self.tile, self.gap))
        arranged = tiled[torch.arange(len(views), device=views.device)[:, None], self.permutations[order]]
        features = self.tile_head(self.backbone(arranged.flatten(0, 1))).unflatten(0, (-1, TILES))
        logits = self.head(features.flatten(1))
        accuracy = (logits.argmax(1) == order).float().mean()
        return {"loss": F.cross_entropy(logits.float(), order), "jigsaw_accuracy": accuracy}


def in_grey(views: Tensor, chosen: Tensor, std: tuple[float, ...]) -> Tensor:
    """Convert the chosen views (bool [N]) to grey, up to the brightness that `standardised` removes.

    views: [N, 3, H, W], normalised; std: deviation that their channels were divided by.
    """
    planes = [plane * (luma * s) for plane, luma, s in zip(views.unbind(1), LUMA, std)]
    grey = torch.stack(planes, dim=1).sum(1, keepdim=True)
    return torch.where(chosen[:, None, None, None], grey, views)


def standardised(tiled: Tensor) -> Tensor:
    """Normalise every channel of every tile to mean 0 and variance 1, [..., H, W], so that brightness gives no clue."""
    variance, mean = torch.var_mean(tiled, dim=(-2, -1), correction=0, keepdim=True)
    return (tiled - mean) * (variance + FLAT).rsqrt()


@cache
def distant_permutations(count: int, length: int = TILES) -> np.ndarray:
    """Return orders that differ in as many places as possible: int64 [count, length], the same at every call.

    Algorithm 1 of Noroozi and Favaro 2016: each further order has the largest sum of Hamming distances to those
    chosen so far. The paper starts with a random order, this function with the identity. Of equally distant ones it
    takes one at random, from its own generator: taking the first would leave many more pairs that
    differ in only two or three places.
    Raises ValueError if there are fewer than `count` orders.
    """
    pool = np.array(list(all_orders(range(length))), dtype=np.int8).T.copy()
    if count > pool.shape[1]:
        raise ValueError(f"there are {pool.shape[1]} orders of {length} things, not {count}")
    generator = np.random.default_rng(0)
    agreement = np.zeros(pool.shape[1], dtype=np.int32)
    chosen = [0]
    while len(chosen) < count:
        for places, place in zip(pool, pool[:, chosen[-1]]):
            agreement += places == place
        agreement[chosen[-1]] = np.iinfo(np.int32).max // 2
        chosen.append(int(generator.choice(np.flatnonzero(agreement == agreement.min()))))
    return pool[:, chosen].T.astype(np.int64)
