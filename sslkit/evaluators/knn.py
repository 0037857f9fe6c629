"""Nearest-neighbour vote: needs no training, so it is the quickest honest figure."""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.evaluators.base import Evaluator, Subject, accuracy, features_at

SIMILARITIES = 2**25
"""How many similarities are held at once: 128 MiB of float32."""
QUERIES = 1024
"""Test images that are compared at once: enough that a matrix product pays."""

Nearness = Callable[[Tensor, slice], Tensor]
"""nearness(x [m, width], rows) -> [m, number of rows] to these training images, larger for nearer."""


class KNN(Evaluator):
    """k nearest training images vote for their class, weighted by similarity (Wu et al. 2018, section 3.4).

    By Euclidean distance every neighbour has one vote (Cover and Hart 1967), the distance of Sonawane et al. 2021.
    """

    class Config(Evaluator.Config):
        metric: Literal["cosine", "euclidean"] = "cosine"
        """cosine: votes weighted by similarity; euclidean: one each, and nearer neighbours decide between equals."""
        k: int = Field(200, ge=1)
        """Neighbours that vote; at most as many as there are training images."""
        temperature: float = Field(0.1, gt=0)
        """cosine: a neighbour of similarity s has exp(s / temperature) votes."""
        layer: str | None = None
        """Layer whose features are compared, by its name in the network; null: the backbone's features."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.k = config.k

    @property
    def protocol(self) -> str:
        capped = " (all training images)" if self.k < self.config.k else ""
        layer = f"features of {self.config.layer}, " if self.config.layer else ""
        if self.config.metric == "euclidean":
            return f"{layer}k={self.k}{capped}, Euclidean, majority vote"
        return f"{layer}k={self.k}{capped}, T={self.config.temperature:g}, cosine, weighted vote"

    def __call__(self, subject: Subject) -> dict[str, float]:
        features = features_at(subject, self.config.layer)
        self.k = min(self.config.k, len(features.train_x))
        ranking = self.predict(features.train_x, features.train_y, features.test_x, features.classes)
        return accuracy(ranking, features.test_y, features.classes)

    @torch.no_grad()
    def predict(self, train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int) -> Tensor:
        """The up to five classes with most votes, best first, int64 [M, min(5, classes)]; -1: no vote was left.

        Memory beyond the features is bounded, however many there are: by SIMILARITIES numbers
        and a few a query and neighbour.
        """
        k = min(self.config.k, len(train_x))
        queries = max(1, min(QUERIES, SIMILARITIES // max(classes, 2 * k)))
        nearness = self._nearness(train_x)
        found = (_nearest(nearness, x, len(train_x), k) for x in test_x.split(queries))
        return torch.cat([self._vote(nearest, train_y[rows], classes) for nearest, rows in found])

    def _nearness(self, train_x: Tensor) -> Nearness:
        """Without a changed copy of all training features."""
        rows = max(1, SIMILARITIES // train_x.shape[1])
        norms = torch.cat([part.norm(dim=1) for part in train_x.split(rows)])
        if self.config.metric == "cosine":
            return lambda x, rows: (F.normalize(x) @ train_x[rows].T).div_(norms[rows].clamp_min(1e-12))
        # ‖x − c‖² = ‖x‖² − 2(x·c − ‖c‖²/2), and ‖x‖² is the same for all c.
        return lambda x, rows: torch.addmm(norms[rows].square(), x, train_x[rows].T, beta=-0.5)

    def _vote(self, nearest: Tensor, labels: Tensor, classes: int) -> Tensor:
        votes = nearest.new_zeros(len(nearest), classes).scatter_add_(1, labels, self._weights(nearest))
        most, ranking = votes.topk(min(5, classes))
        return ranking.masked_fill(most == 0, -1)

    def _weights(self, nearest: Tensor) -> Tensor:
        """Votes of neighbours, nearest first, [m, k]."""
        if self.config.metric == "cosine":
            # Relative to the nearest, or a low temperature overflows.
            return ((nearest - nearest[:, :1]) / self.config.temperature).exp()
        # All that is added to the k votes is half a vote: it only decides between equals.
        k = nearest.shape[1]
        rank = torch.arange(k, 0, -1, device=nearest.device, dtype=nearest.dtype)
        return (1 + rank / (k * (k + 1))).expand_as(nearest)


def _nearest(nearness: Nearness, x: Tensor, images: int, k: int) -> tuple[Tensor, Tensor]:
    """(nearness, row) of the k nearest training images, nearest first, [m, k]; one block of them after another."""
    block = max(1, SIMILARITIES // len(x))
    best, index = x.new_empty(len(x), 0), x.new_empty(len(x), 0, dtype=torch.int64)
    for start in range(0, images, block):
        stop = min(start + block, images)
        # Under no name, or the block would still be there while the next one is made.
        values, rows = nearness(x, slice(start, stop)).topk(min(k, stop - start))
        best, order = torch.cat([best, values], 1).topk(min(k, best.shape[1] + values.shape[1]))
        index = torch.cat([index, rows + start], 1).gather(1, order)
    return best, index
