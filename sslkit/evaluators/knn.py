"""Weighted nearest-neighbour vote: needs no training, so it is the quickest honest figure."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.evaluators.base import Evaluator, Subject, accuracy, features_at

SIMILARITIES = 2**25
"""How many similarities are held at once: 128 MB of float32."""


class KNN(Evaluator):
    """k nearest training images vote for their class, weighted by similarity (Wu et al. 2018, section 3.4)."""

    class Config(Evaluator.Config):
        k: int = Field(200, ge=1)
        """Neighbours that vote; at most as many as there are training images."""
        temperature: float = Field(0.1, gt=0)
        """A neighbour of cosine similarity s has exp(s / temperature) votes."""
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
        return f"{layer}k={self.k}{capped}, T={self.config.temperature:g}, cosine, weighted vote"

    def __call__(self, subject: Subject) -> dict[str, float]:
        features = features_at(subject, self.config.layer)
        self.k = min(self.config.k, len(features.train_x))
        ranking = self.predict(features.train_x, features.train_y, features.test_x, features.classes)
        return accuracy(ranking, features.test_y, features.classes)

    @torch.no_grad()
    def predict(self, train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int) -> Tensor:
        """The up to five classes with most votes, best first, int64 [M, min(5, classes)]; -1: no vote was left.

        Memory beyond the features is bounded, however many there are.
        """
        chunk = max(1, SIMILARITIES // max(len(train_x), classes))
        scale = _inverse_norms(train_x, SIMILARITIES // train_x.shape[1])
        return torch.cat([self._vote(x, train_x, scale, train_y, classes) for x in test_x.split(chunk)])

    def _vote(self, x: Tensor, train_x: Tensor, scale: Tensor, train_y: Tensor, classes: int) -> Tensor:
        # Scaling the similarities spares a normalised copy of all training features.
        similarity = (F.normalize(x) @ train_x.T).mul_(scale)
        nearest, index = similarity.topk(min(self.config.k, len(train_x)))
        # Relative to the nearest, or a low temperature overflows.
        weight = ((nearest - nearest[:, :1]) / self.config.temperature).exp()
        votes = weight.new_zeros(len(x), classes).scatter_add_(1, train_y[index], weight)
        most, ranking = votes.topk(min(5, classes))
        return ranking.masked_fill(most == 0, -1)


def _inverse_norms(x: Tensor, rows: int) -> Tensor:
    return torch.cat([1 / part.norm(dim=1).clamp_min(1e-12) for part in x.split(max(1, rows))])
