"""A small neural classifier on pixels, embeddings, or embeddings reduced to a few dimensions."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.data.split import stratified_split
from sslkit.evaluation.evaluator import Evaluator, accuracy
from sslkit.evaluation.evaluators.logistic import moments
from sslkit.evaluation.extraction import Features
from sslkit.evaluation.subject import Subject
from sslkit.nn.modes import own_random

LOGITS = 2**25
"""Most hidden units computed at once: 128 MB of float32."""


class MLP(Evaluator):
    """Classifier with one hidden layer on pixels, features, or their PCA or t-SNE (Beasse 2024, 6.2, Figure 10).

    PCA is fitted to the training images. t-SNE places only points that it was fitted to, so it is fitted to
    training and test images together, without labels (a transductive protocol).
    """

    class Config(Evaluator.Config):
        input: Literal["pixels", "embeddings", "pca", "tsne"] = "embeddings"
        """Input of the classifier: pixels, the backbone's features (embeddings), or these reduced by pca or tsne."""
        components: int = Field(50, ge=1)
        """pca: number of components, at most the width of the features."""
        perplexity: float = Field(30.0, gt=0)
        """tsne: effective number of neighbours; at most a third of the images."""
        tsne_train: int = Field(20_000, ge=10)
        """tsne: largest number of training images, a stratified choice by seed, because t-SNE becomes slow."""
        pixel_size: int = Field(32, ge=4)
        """pixels: larger images are averaged down to this height and width."""
        hidden: int = Field(512, ge=1)
        """Units of the hidden layer."""
        epochs: int = Field(30, ge=1)
        """Passes over the training images."""
        batch_size: int = Field(256, ge=1)
        """Images per step."""
        lr: float = Field(1e-3, gt=0)
        """Learning rate of Adam."""

    config: Config
    judges_features = True
    n_train = 0

    @property
    def protocol(self) -> str:
        c = self.config
        inputs = {
            "pixels": f"pixels, at most {c.pixel_size}×{c.pixel_size}",
            "embeddings": "embeddings",
            "pca": f"embeddings, PCA to {c.components} fitted on train",
            "tsne": f"embeddings, t-SNE to 2 of train and test together, without labels, perplexity {c.perplexity:g}",
        }[c.input]
        few = f" ({self.n_train} training images)" if self.n_train else ""
        return (
            f"MLP on {inputs}{few}, standardized on train; {c.hidden} hidden units, ReLU; "
            f"Adam {c.epochs} epochs, batch {c.batch_size}, lr {c.lr:g}"
        )

    def __call__(self, subject: Subject) -> dict[str, float]:
        train_x, train_y, test_x, test_y, classes = self._inputs(subject)
        ranking = self.predict(train_x, train_y, test_x, classes, subject.seed)
        return accuracy(ranking, test_y, classes)

    def predict(self, train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int, seed: int = 0) -> Tensor:
        """Train, then return the up to five likeliest classes, best first, int64 [M, min(5, classes)].

        All randomness depends on `seed`.
        """
        mean, std = moments(train_x)
        with own_random(seed), torch.enable_grad():
            model = nn.Sequential(
                nn.Linear(train_x.shape[1], self.config.hidden), nn.ReLU(), nn.Linear(self.config.hidden, classes)
            ).to(train_x.device)
            self._train(model, (train_x - mean) / std, train_y)
        with torch.no_grad():
            rows = max(1, LOGITS // self.config.hidden)
            return torch.cat([model((x - mean) / std).topk(min(5, classes)).indices for x in test_x.split(rows)])

    def _train(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        optimizer = torch.optim.Adam(model.parameters(), self.config.lr)
        for _ in range(self.config.epochs):
            for rows in torch.randperm(len(x)).to(x.device).split(self.config.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()

    def _inputs(self, subject: Subject) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        kind = self.config.input
        f = subject.features_by(self._pixels) if kind == "pixels" else subject.features
        if kind == "tsne":
            f = self._fewer(f, subject.seed)
        if kind in ("pca", "tsne"):
            reduce = self._pca if kind == "pca" else self._tsne
            train, test = reduce(f.train_x.cpu().numpy(), f.test_x.cpu().numpy(), subject.seed)
            on_device = [torch.from_numpy(np.ascontiguousarray(x)).float().to(f.train_x.device) for x in (train, test)]
            return on_device[0], f.train_y, on_device[1], f.test_y, f.classes
        return f.train_x, f.train_y, f.test_x, f.test_y, f.classes

    def _pixels(self, views: Tensor) -> Tensor:
        side = min(self.config.pixel_size, views.shape[-1])
        return F.adaptive_avg_pool2d(views, side).flatten(1)

    def _fewer(self, f: Features, seed: int) -> Features:
        if len(f.train_x) <= self.config.tsne_train:
            return f
        share = self.config.tsne_train / len(f.train_x)
        _, chosen = stratified_split(f.train_y.cpu().numpy(), seed, share)
        rows = torch.from_numpy(chosen).to(f.train_x.device)
        self.n_train = len(rows)
        return Features(f.train_x[rows], f.train_y[rows], f.test_x, f.test_y, f.classes)

    def _pca(self, train: np.ndarray, test: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.decomposition import PCA

        pca = PCA(min(self.config.components, *train.shape), random_state=seed).fit(train)
        return pca.transform(train), pca.transform(test)

    def _tsne(self, train: np.ndarray, test: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.manifold import TSNE

        both = np.concatenate([train, test])
        perplexity = min(self.config.perplexity, (len(both) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(both)
        return points[: len(train)], points[len(train) :]
