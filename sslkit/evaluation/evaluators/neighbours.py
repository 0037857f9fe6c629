"""Nearest training images, found block by block, for evaluators that ask who they are or let them vote."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "euclidean"]

SIMILARITIES = 2**25
"""How many similarities are held at once: 128 MiB of float32."""
LONGEST = 1e12
"""The scale of an image without a direction: it stays where it is."""
QUERIES = 1024
"""Test images that are compared at once: enough that a matrix product pays."""


def nearest(
    train_x: Tensor, test_x: Tensor, k: int, metric: Metric, beside: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """(nearness, row) of the min(k, N) training images nearest to each test image, nearest first, [m, k] both; m test
    images at a time, in order.

    Only differences of nearness mean something: they are those of the cosine similarity, or of -‖x - t‖²/2.
    beside: how many numbers a test image the caller makes of that, for they count too.
    Memory beyond the features is bounded by a few times SIMILARITIES numbers, and two for each training image.
    """
    k = min(k, len(train_x))
    queries = max(1, min(QUERIES, SIMILARITIES // max(beside, 2 * k)))
    bank = _TrainFeatures(train_x, metric, max(1, SIMILARITIES // max(min(queries, len(test_x)), train_x.shape[1])))
    for x in test_x.split(queries):
        yield _of_all_blocks(bank.around_centre(x, _scales(x, metric)), bank, k)


class _TrainFeatures:
    """Training images in blocks, and of each image what all test images ask for: its scale, and its square.

    -‖x - t‖²/2 is x·t - ‖t‖²/2, but for a number that is the same for all t. Both are taken around the centre: far from
    the origin the digits that tell neighbours apart are lost in the square and in the product.
    """

    def __init__(self, x: Tensor, metric: Metric, size: int) -> None:
        self._blocks = x.split(size)
        self._scales = [_scales(block, metric) for block in self._blocks]
        sums = [scales[:, 0] @ block for block, scales in zip(self._blocks, self._scales)]
        self._centre = torch.stack(sums).sum(0) / len(x)
        self._squares = [self._square(block, scales) for block, scales in zip(self._blocks, self._scales)]
        if metric == "cosine":
            # Half of the square of a length of 1, which an image without a direction does not have.
            self._squares = [q + (scales[:, 0] == LONGEST) for q, scales in zip(self._squares, self._scales)]

    def _square(self, block: Tensor, scales: Tensor) -> Tensor:
        out: Tensor = self.around_centre(block, scales).norm(dim=1).square_()
        return out

    def around_centre(self, x: Tensor, scales: Tensor) -> Tensor:
        return torch.addcmul(-self._centre, x, scales)

    def nearness(self, x: Tensor) -> Iterator[Tensor]:
        """Of test images x, scaled and around the centre [m, width], to the training images of each block, [m, n]."""
        for block, scales, squares in zip(self._blocks, self._scales, self._squares):
            yield torch.addmm(squares, x, self.around_centre(block, scales).T, beta=-0.5)


def _of_all_blocks(x: Tensor, bank: _TrainFeatures, k: int) -> tuple[Tensor, Tensor]:
    best, index = x.new_empty(len(x), 0), x.new_empty(len(x), 0, dtype=torch.int64)
    start = 0
    for nearness in bank.nearness(x):
        values, rows = nearness.topk(min(k, nearness.shape[1]))
        best, order = torch.cat([best, values], 1).topk(min(k, best.shape[1] + values.shape[1]))
        index = torch.cat([index, rows + start], 1).gather(1, order)
        start += nearness.shape[1]
        # Or it would still be there while the next one is made.
        del nearness
    return best, index


def _scales(x: Tensor, metric: Metric) -> Tensor:
    """[n, 1]: to length 1 where length shall not count."""
    if metric != "cosine":
        return x.new_ones(len(x), 1)
    out: Tensor = x.norm(dim=1, keepdim=True).reciprocal().clamp_max(LONGEST)
    return out
