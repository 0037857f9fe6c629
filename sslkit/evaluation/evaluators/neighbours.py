"""Nearest training images of test images, found block by block, for kNN and retrieval."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "euclidean"]

SIMILARITIES = 2**25
"""Most similarities computed at once: 128 MiB of float32."""
LONGEST = 1e12
"""Largest scale, for an image whose features are zero and so have no direction."""
QUERIES = 1024
"""Test images that are compared at once: enough for an efficient matrix product."""


def nearest(
    train_x: Tensor, test_x: Tensor, k: int, metric: Metric, beside: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (nearness, row) of the min(k, N) training images nearest to each test image, nearest first, [m, k] both.

    Test images come m at a time, in order. Only differences of nearness are meaningful: they are those of the cosine
    similarity, or of -‖x - t‖²/2.
    beside: how many numbers per test image the caller computes from the result, as part of the memory bound.
    Memory beyond the features is bounded by a few times SIMILARITIES numbers, and two for each training image.
    """
    k = min(k, len(train_x))
    queries = max(1, min(QUERIES, SIMILARITIES // max(beside, 2 * k)))
    train = _TrainFeatures(train_x, metric, max(1, SIMILARITIES // max(min(queries, len(test_x)), train_x.shape[1])))
    for x in test_x.split(queries):
        yield _merge_blocks(train.around_centre(x, _scales(x, metric)), train, k)


class _TrainFeatures:
    """Training features in blocks, with the scale and the squared norm of each image, which all test images share.

    -‖x - t‖²/2 is x·t - ‖t‖²/2 up to a constant that is the same for all t. Both are computed around the centre: far
    from the origin the digits that distinguish neighbours would be lost in the square and in the product.
    """

    def __init__(self, x: Tensor, metric: Metric, size: int) -> None:
        self._blocks = x.split(size)
        self._scales = [_scales(block, metric) for block in self._blocks]
        sums = [scales[:, 0] @ block for block, scales in zip(self._blocks, self._scales)]
        self._centre = torch.stack(sums).sum(0) / len(x)
        self._squares = [self._square(block, scales) for block, scales in zip(self._blocks, self._scales)]
        if metric == "cosine":
            # Half the squared norm of 1 is missing for an image without a direction.
            self._squares = [q + (scales[:, 0] == LONGEST) for q, scales in zip(self._squares, self._scales)]

    def _square(self, block: Tensor, scales: Tensor) -> Tensor:
        out: Tensor = self.around_centre(block, scales).norm(dim=1).square_()
        return out

    def around_centre(self, x: Tensor, scales: Tensor) -> Tensor:
        return torch.addcmul(-self._centre, x, scales)

    def nearness(self, x: Tensor) -> Iterator[Tensor]:
        """Nearness of test images x, scaled and centred [m, width], to the training images of each block, [m, n]."""
        for block, scales, squares in zip(self._blocks, self._scales, self._squares):
            yield torch.addmm(squares, x, self.around_centre(block, scales).T, beta=-0.5)


def _merge_blocks(x: Tensor, train: _TrainFeatures, k: int) -> tuple[Tensor, Tensor]:
    best, index = x.new_empty(len(x), 0), x.new_empty(len(x), 0, dtype=torch.int64)
    start = 0
    for nearness in train.nearness(x):
        values, rows = nearness.topk(min(k, nearness.shape[1]))
        best, order = torch.cat([best, values], 1).topk(min(k, best.shape[1] + values.shape[1]))
        index = torch.cat([index, rows + start], 1).gather(1, order)
        start += nearness.shape[1]
        # Otherwise it would stay in memory while the next block is computed.
        del nearness
    return best, index


def _scales(x: Tensor, metric: Metric) -> Tensor:
    """Scales [n, 1] that give unit length, or 1 if the metric depends on length."""
    if metric != "cosine":
        return x.new_ones(len(x), 1)
    out: Tensor = x.norm(dim=1, keepdim=True).reciprocal().clamp_max(LONGEST)
    return out
