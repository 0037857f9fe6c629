"""Nearest training images, found block by block, for evaluators that ask who they are or let them vote."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Metric = Literal["cosine", "euclidean"]

SIMILARITIES = 2**25
"""How many similarities are held at once: 128 MiB of float32."""
QUERIES = 1024
"""Test images that are compared at once: enough that a matrix product pays."""


def nearest(
    train_x: Tensor, test_x: Tensor, k: int, metric: Metric, beside: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """(nearness, row) of the min(k, N) training images nearest to each test image, nearest first, [m, k] both; m test
    images at a time, in order.

    Only differences of nearness mean something: they are those of the cosine similarity, or of -‖x - t‖²/2.
    beside: how many numbers a test image the caller makes of that, for they count too.
    Memory beyond the features is bounded, however many there are: by a few times SIMILARITIES numbers.
    """
    k = min(k, len(train_x))
    centre = _centre(train_x, metric)
    for x in test_x.split(max(1, min(QUERIES, SIMILARITIES // max(beside, 2 * k)))):
        yield _of_all_blocks(_scaled(x, metric) - centre, train_x, k, metric, centre)


def _of_all_blocks(x: Tensor, train_x: Tensor, k: int, metric: Metric, centre: Tensor) -> tuple[Tensor, Tensor]:
    best, index = x.new_empty(len(x), 0), x.new_empty(len(x), 0, dtype=torch.int64)
    start = 0
    for block in train_x.split(max(1, SIMILARITIES // max(x.shape))):
        # Under no name, or the similarities would still be there while the next ones are made.
        values, rows = _nearness(x, block, metric, centre).topk(min(k, len(block)))
        best, order = torch.cat([best, values], 1).topk(min(k, best.shape[1] + values.shape[1]))
        index = torch.cat([index, rows + start], 1).gather(1, order)
        start += len(block)
    return best, index


def _nearness(x: Tensor, block: Tensor, metric: Metric, centre: Tensor) -> Tensor:
    """Of test images x, scaled and centred [m, width], to the training images of a block [n, width], [m, n]."""
    t = _scaled(block, metric)
    # -‖x - t‖²/2 but for -‖x‖²/2, the same for all t. Both around the centre: far from the origin the digits that
    # tell neighbours apart are lost in the square and in the product.
    around = t - centre
    squares = around.norm(dim=1).square_()
    if metric == "cosine":
        # -‖x - t‖²/2 is x·t - 1 where both have length 1; t without a direction has length 0, and x·t - 1/2.
        squares += t.norm(dim=1) < 0.5
    return torch.addmm(squares, x, around.T, beta=-0.5)


def _centre(train_x: Tensor, metric: Metric) -> Tensor:
    """The mean of the training images [width], without a scaled copy of them all."""
    parts = train_x.split(max(1, SIMILARITIES // train_x.shape[1]))
    return torch.stack([_scaled(part, metric).sum(0) for part in parts]).sum(0) / len(train_x)


def _scaled(x: Tensor, metric: Metric) -> Tensor:
    """To length 1 where length shall not count."""
    return F.normalize(x) if metric == "cosine" else x
