"""The linear probe: a linear classifier on frozen features, the standard protocol of the field."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.evaluation.evaluator import Evaluator, accuracy, features_at
from sslkit.evaluation.evaluators.logistic import Probe, fit
from sslkit.evaluation.subject import Subject
from sslkit.nn.schedules import cosine


class Linear(Evaluator):
    """Linear classifier trained on frozen features (Zhang et al. 2016; settings after SimCLR, B.6).

    An earlier layer's map is averaged over a grid to about 9000 numbers (Goyal et al. 2019). Features are extracted
    once, without augmentation, so a probe takes seconds. Nothing is selected on test images: the result is that of the
    last epoch.
    """

    class Config(Evaluator.Config):
        layer: str | None = None
        """Layer to probe, by its name in the network: layer3, blocks.4; null: the backbone's features."""
        solver: Literal["sgd", "lbfgs"] = "sgd"
        """sgd: as in the papers; lbfgs: logistic regression to its optimum, without a learning rate."""
        standardize: bool = True
        """Standardize each feature to mean 0, deviation 1 over the training images, so that one rate suits all."""
        epochs: int = Field(100, ge=1)
        """sgd: passes over the training features."""
        batch_size: int = Field(512, ge=1)
        """sgd: features per step."""
        lr: float = Field(0.1, gt=0)
        """sgd: initial learning rate; it falls to zero along a cosine."""
        momentum: float = Field(0.9, ge=0, lt=1)
        """sgd: Nesterov momentum."""
        weight_decay: float = Field(0.0, ge=0)
        """sgd: weight decay; the papers use none."""
        l2: float = Field(1.0, ge=0)
        """lbfgs: l2/2 · ‖W‖² is added to the summed loss (scikit-learn's 1/C); the bias is exempt."""
        max_steps: int = Field(500, ge=1)
        """lbfgs: largest number of iterations."""

    config: Config
    judges_features = True

    @property
    def protocol(self) -> str:
        c = self.config
        layer = f" of {c.layer}" if c.layer else ""
        features = f"frozen features{layer}{', standardized on train' if c.standardize else ''}"
        if c.solver == "lbfgs":
            return f"{features}; logistic regression, L-BFGS, l2={c.l2:g}"
        return (
            f"{features}; SGD {c.epochs} epochs, batch {c.batch_size}, lr {c.lr:g} cosine, "
            f"Nesterov momentum {c.momentum:g}, weight decay {c.weight_decay:g}"
        )

    def __call__(self, subject: Subject) -> dict[str, float]:
        features = features_at(subject, self.config.layer)
        ranking = self.predict(features.train_x, features.train_y, features.test_x, features.classes, subject.seed)
        return accuracy(ranking, features.test_y, features.classes)

    def predict(self, train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int, seed: int = 0) -> Tensor:
        """Train, then return the up to five likeliest classes, best first, int64 [M, min(5, classes)].

        Batches depend on `seed` alone; the weights start at zero, as good as any start for a convex loss.
        """
        c = self.config
        if c.solver == "lbfgs":
            probe = fit(train_x, train_y, classes, l2=c.l2, standardize=c.standardize, max_steps=c.max_steps)
        else:
            probe = Probe(train_x, classes, c.standardize)
            with torch.enable_grad():
                self._sgd(probe, train_x, train_y, torch.Generator().manual_seed(seed))
        return probe.ranking(test_x)

    def _sgd(self, probe: Probe, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        c = self.config
        optimizer = torch.optim.SGD(
            probe.parameters(), c.lr, c.momentum, weight_decay=c.weight_decay, nesterov=c.momentum > 0
        )
        steps = math.ceil(len(x) / c.batch_size)
        for epoch in range(c.epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for step, rows in enumerate(order.split(c.batch_size)):
                progress = (epoch + step / steps) / c.epochs
                optimizer.param_groups[0]["lr"] = cosine(c.lr, 0.0, progress)
                optimizer.zero_grad()
                F.cross_entropy(probe(x[rows]), y[rows]).backward()
                optimizer.step()
