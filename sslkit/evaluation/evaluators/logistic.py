"""Logistic regression on frozen features, to its optimum: a linear classifier without a learning rate."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.data.split import stratified_split
from sslkit.errors import UserError

Score = Callable[[Tensor, Tensor], float]
"""Criterion of a selection: (predicted, true) class numbers [M] -> a number to maximise."""


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature [N, width] -> two of [width], the deviation safe to divide by."""
    std, mean = torch.std_mean(x, 0, correction=0)
    # The deviation of a constant feature is rounding error, which must not be amplified.
    return mean, torch.maximum(std, 1e-6 * mean.abs()).clamp_min(1e-30)


class Probe(nn.Module):
    """Logits [B, classes] of features [B, width], standardized by the moments of the training features."""

    def __init__(self, train_x: Tensor, classes: int, standardize: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(train_x.new_zeros(classes, train_x.shape[1]))
        self.bias = nn.Parameter(train_x.new_zeros(classes))
        self.mean, self.std = moments(train_x) if standardize else (train_x.new_zeros(1), train_x.new_ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear((x - self.mean) / self.std, self.weight, self.bias)

    @torch.no_grad()
    def ranking(self, x: Tensor) -> Tensor:
        """Return the up to five likeliest classes, best first, int64 [M, min(5, classes)]."""
        return torch.cat([self(part).topk(min(5, len(self.bias))).indices for part in x.split(4096)])


def fit(
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    l2: float = 1.0,
    standardize: bool = True,
    max_steps: int = 500,
    start: Probe | None = None,
) -> Probe:
    """Minimise the summed cross-entropy + l2/2 · ‖W‖² (scikit-learn's 1/C) by L-BFGS; the bias is exempt.

    x: float [N, width]; y: int64 [N], 0 to classes - 1. `start`: a probe of the same features to start from.
    """
    probe = Probe(x, classes, standardize)
    if start is not None:
        probe.load_state_dict(start.state_dict())
    optimizer = torch.optim.LBFGS(
        probe.parameters(), max_iter=max_steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(probe(x), y) + l2 / 2 * probe.weight.square().sum() / len(x)
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return probe.requires_grad_(False)


def choose_l2(
    x: Tensor, y: Tensor, classes: int, values: Iterable[float], *, score: Score, seed: int, standardize: bool = True
) -> float:
    """Return the value whose probe, trained on four fifths of the images, scores best on the stratified fifth held out.

    Of ties the strongest wins. Raises UserError if no class has two images.
    """
    rest, held_out = (torch.from_numpy(rows).to(x.device) for rows in stratified_split(y.cpu().numpy(), seed))
    if not len(held_out):
        raise UserError("too few images of each class to hold any out for the choice of l2; give at least two of one")
    scores: dict[float, float] = {}
    probe = None
    # From the strongest downwards, because the optimum of one l2 is close to that of the next.
    for l2 in sorted(values, reverse=True):
        probe = fit(x[rest], y[rest], classes, l2=l2, standardize=standardize, start=probe)
        scores[l2] = score(probe.ranking(x[held_out])[:, 0], y[held_out])
    return max(scores, key=scores.__getitem__)


def share_right(predicted: Tensor, labels: Tensor) -> float:
    """Share of the images that are classified correctly: top-1 accuracy."""
    return (predicted == labels).double().mean().item()


def mean_per_class(predicted: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of each class that occurs, averaged over the classes, so that rare and common ones count alike."""
    right = (predicted == labels).double()
    return torch.stack([right[labels == c].mean() for c in labels.unique()]).mean().item()
