"""k-nearest-neighbour classification, which needs no training and so is the quickest honest figure."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sslkit.evaluation.evaluator import Evaluator, accuracy, features_at
from sslkit.evaluation.evaluators.neighbours import Metric, nearest
from sslkit.evaluation.subject import Subject

FEWEST, MOST, SHARE = 5, 200, 25
"""k=auto: a 25th of a class, within 5 and 200; Wu et al. 2018 use 200 for the 5,000 images a class of CIFAR-10."""


class KNN(Evaluator):
    """k nearest training images vote for their class, weighted by similarity (Wu et al. 2018, section 3.4).

    With Euclidean distance every neighbour has one vote (Cover and Hart 1967), the distance of Sonawane et al. 2021.
    """

    class Config(Evaluator.Config):
        metric: Metric = "cosine"
        """cosine: votes weighted by similarity; euclidean: one vote each, ties decided by nearer neighbours."""
        k: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
        """Number of neighbours that vote; at most the number of training images. auto: a 25th of the training images
        of a class, within 5 and 200; 200, the field's usual number, is for classes of 5,000."""
        temperature: float = Field(0.1, gt=0)
        """cosine: a neighbour of similarity s has exp(s / temperature) votes."""
        layer: str | None = None
        """Layer whose features are compared, by its name in the network; null: the backbone's features."""

    config: Config
    judges_features = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.k = config.k if isinstance(config.k, int) else MOST

    @property
    def protocol(self) -> str:
        capped = " (all training images)" if isinstance(self.config.k, int) and self.k < self.config.k else ""
        layer = f"features of {self.config.layer}, " if self.config.layer else ""
        if self.config.metric == "euclidean":
            return f"{layer}k={self.k}{capped}, Euclidean, majority vote"
        return f"{layer}k={self.k}{capped}, T={self.config.temperature:g}, cosine, weighted vote"

    def __call__(self, subject: Subject) -> dict[str, float]:
        features = features_at(subject, self.config.layer)
        images = len(features.train_x)
        self.k = min(self._neighbours(images, features.classes), images)
        ranking = self.predict(features.train_x, features.train_y, features.test_x, features.classes)
        return accuracy(ranking, features.test_y, features.classes)

    @torch.no_grad()
    def predict(self, train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int) -> Tensor:
        """Return the up to five classes with most votes, best first, int64 [M, min(5, classes)]; -1: no vote was left.

        Memory beyond the features is bounded as in `nearest`, however many there are.
        """
        k = self._neighbours(len(train_x), classes)
        neighbours = nearest(train_x, test_x, k, self.config.metric, beside=classes)
        return torch.cat([self._vote(nearness, train_y[rows], classes) for nearness, rows in neighbours])

    def _neighbours(self, images: int, classes: int) -> int:
        if isinstance(self.config.k, int):
            return self.config.k
        return min(max(round(images / max(classes, 1) / SHARE), FEWEST), MOST)

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
