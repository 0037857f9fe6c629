"""The linear probe: one linear classifier on frozen features, the field's usual protocol."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.evaluators.base import Evaluator, Subject, accuracy, features_at


class Linear(Evaluator):
    """Linear classifier trained on frozen features (Zhang et al. 2016; settings after SimCLR, B.6).

    An earlier layer's map is averaged over a grid to about 9000 numbers (Goyal et al. 2019). Features are extracted
    once, without augmentation, so a probe takes seconds. Nothing is chosen by test images:
    what the last epoch leaves is what counts.
    """

    class Config(Evaluator.Config):
        layer: str | None = None
        """Layer to probe, by its name in the network: layer3, blocks.4; null: the backbone's features."""
        solver: Literal["sgd", "lbfgs"] = "sgd"
        """sgd: the papers' way; lbfgs: logistic regression to its optimum, which has no learning rate."""
        standardize: bool = True
        """Bring each feature to mean 0 and deviation 1 over the training images, so that one rate suits all."""
        epochs: int = Field(100, ge=1)
        """sgd: passes over the training features."""
        batch_size: int = Field(512, ge=1)
        """sgd: features a step."""
        lr: float = Field(0.1, gt=0)
        """sgd: learning rate at the start; it falls to zero along a cosine."""
        momentum: float = Field(0.9, ge=0, lt=1)
        """sgd: Nesterov momentum."""
        weight_decay: float = Field(0.0, ge=0)
        """sgd: weight decay; the papers use none."""
        l2: float = Field(1.0, ge=0)
        """lbfgs: l2/2 · ‖W‖² is added to the summed loss (scikit-learn's 1/C); the bias is exempt."""
        max_steps: int = Field(500, ge=1)
        """lbfgs: most iterations."""

    config: Config

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
        """Train, then the up to five likeliest classes, best first, int64 [M, min(5, classes)].

        Batches depend on `seed` alone; the weights start at zero, which for a convex loss is as good as any.
        """
        model = _Probe(train_x, classes, self.config.standardize)
        with torch.enable_grad():
            if self.config.solver == "lbfgs":
                self._lbfgs(model, train_x, train_y)
            else:
                self._sgd(model, train_x, train_y, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return torch.cat([model(x).topk(min(5, classes)).indices for x in test_x.split(4096)])

    def _sgd(self, model: "_Probe", x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        c = self.config
        optimizer = torch.optim.SGD(
            model.parameters(), c.lr, c.momentum, weight_decay=c.weight_decay, nesterov=c.momentum > 0
        )
        steps = math.ceil(len(x) / c.batch_size)
        for epoch in range(c.epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for step, rows in enumerate(order.split(c.batch_size)):
                progress = (epoch + step / steps) / c.epochs
                optimizer.param_groups[0]["lr"] = c.lr * (1 + math.cos(math.pi * progress)) / 2
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()

    def _lbfgs(self, model: "_Probe", x: Tensor, y: Tensor) -> None:
        optimizer = torch.optim.LBFGS(
            model.parameters(),
            max_iter=self.config.max_steps,
            tolerance_grad=1e-6,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            penalty = self.config.l2 / 2 * model.weight.square().sum()
            total = F.cross_entropy(model(x), y) + penalty / len(x)
            total.backward()
            return total

        optimizer.step(loss)


class _Probe(nn.Module):
    """Logits [B, classes] of features [B, width]."""

    def __init__(self, train_x: Tensor, classes: int, standardize: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(train_x.new_zeros(classes, train_x.shape[1]))
        self.bias = nn.Parameter(train_x.new_zeros(classes))
        self.mean, self.std = _scale(train_x) if standardize else (train_x.new_zeros(1), train_x.new_ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear((x - self.mean) / self.std, self.weight, self.bias)


def _scale(x: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(x, 0, correction=0)
    # The deviation of a feature that never varies is rounding error, which must not be blown up.
    return mean, torch.maximum(std, 1e-6 * mean.abs()).clamp_min(1e-30)
