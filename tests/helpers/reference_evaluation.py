"""kNN and the linear probe written out slowly in plain torch: what a run's evaluations must give."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.data import Store, in_order


@torch.no_grad()
def features_one_by_one(backbone: nn.Module, store: Store, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, width] of every image by itself, and their classes [N]."""
    images = torch.cat([batch.images for batch in in_order(store, batch_size=64, device="cpu")])
    views = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
    return torch.cat([backbone(view[None]) for view in views]), torch.from_numpy(store.labels).long()


def knn_classes(train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Classes from most to fewest votes, [M, classes], one test image after another (Wu et al. 2018, section 3.4).

    In place of a class without a vote stands -1.
    """
    rankings = []
    for x in test_x.double():
        similarity = F.cosine_similarity(train_x.double(), x[None])
        nearest = similarity.argsort(descending=True)[:k]
        votes = torch.zeros(classes, dtype=torch.double)
        for row in nearest:
            votes[train_y[row]] += (similarity[row] / temperature).exp()
        ranking = votes.argsort(descending=True)
        rankings.append(torch.where(votes[ranking] > 0, ranking, -1))
    return torch.stack(rankings)


def linear_classes(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int, seed: int, epochs: int, batch: int, lr: float
) -> Tensor:
    """Classes from likeliest to least likely, [M, classes]: SGD with Nesterov momentum 0.9 on standardised features."""
    mean, std = train_x.mean(0), train_x.std(0, correction=0)
    # A feature that does not vary tells nothing: its rounding errors must not be divided by themselves.
    std = torch.where(std > 1e-6 * mean.abs(), std, 1e-6 * mean.abs()).clamp_min(1e-30)
    probe = nn.Linear(train_x.shape[1], classes)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    sgd = torch.optim.SGD(probe.parameters(), lr, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(train_x) / batch)
    done = 0
    for _ in range(epochs):
        order = torch.randperm(len(train_x), generator=generator)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            sgd.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * done / steps)) / 2
            sgd.zero_grad()
            F.cross_entropy(probe((train_x[rows] - mean) / std), train_y[rows]).backward()
            sgd.step()
            done += 1
    with torch.no_grad():
        return probe((test_x - mean) / std).argsort(dim=1, descending=True)


def top_accuracies(ranking: Tensor, labels: Tensor) -> dict[str, float]:
    """Shares of images whose class comes first, and among the first five."""
    rows = ranking.tolist()
    return {f"top{n}": sum(y in row[:n] for row, y in zip(rows, labels.tolist())) / len(rows) for n in (1, 5)}
