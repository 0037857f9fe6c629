"""k-nearest-neighbour classification, which needs no training and so is the quickest honest figure."""

import torch
from pydantic import Field
from torch import Tensor

from sslkit.evaluation.evaluator import Evaluator, accuracy, features_at
from sslkit.evaluation.evaluators.neighbours import Metric, nearest
from sslkit.evaluation.subject import Subject


class KNN(Evaluator):
    """k nearest training images vote for their class, weighted by similarity (Wu et al. 2018, section 3.4).

    With Euclidean distance every neighbour has one vote (Cover and Hart 1967), the distance of Sonawane et al. 2021.
    """

    class Config(Evaluator.Config):
        metric: Metric = "cosine"
        """cosine: votes weighted by similarity; euclidean: one vote each, ties decided by nearer neighbours."""
        k: int = Field(200, ge=1)
        """Number of neighbours that vote; at most the number of training images."""
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
        """Return the up to five classes with most votes, best first, int64 [M, min(5, classes)]; -1: no vote was left.

        Memory beyond the features is bounded as in `nearest`, however many there are.
        """
        neighbours = nearest(train_x, test_x, self.config.k, self.config.metric, beside=classes)
        return torch.cat([self._vote(nearness, train_y[rows], classes) for nearness, rows in neighbours])

    def _vote(self, nearness: Tensor, labels: Tensor, classes: int) -> Tensor:
        votes = nearness.new_zeros(len(nearness), classes).scatter_add_(1, labels, self._weights(nearness))
        most, ranking = votes.topk(min(5, classes))
        return ranking.masked_fill(most == 0, -1)

    def _weights(self, nearness: Tensor) -> Tensor:
        """Weight of each neighbour's vote, nearest first, [m, k]."""
        if self.config.metric == "cosine":
            # Relative to the nearest neighbour, because a low temperature would overflow.
            return ((nearness - nearness[:, :1]) / self.config.temperature).exp()
        # The ranks add up to half a vote over all k neighbours, so they only decide ties.
        k = nearness.shape[1]
        rank = torch.arange(k, 0, -1, device=nearness.device, dtype=nearness.dtype)
        return (1 + rank / (k * (k + 1))).expand_as(nearness)
