"""Nearest-neighbour retrieval: which images the backbone considers similar."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from sslkit.evaluation.drawing.images import class_names, labelled_rows, thumbnails
from sslkit.evaluation.evaluator import Evaluator
from sslkit.evaluation.evaluators.neighbours import Metric, nearest
from sslkit.evaluation.subject import Subject

if TYPE_CHECKING:
    from sslkit.evaluation.drawing.pictures import Cell


class Retrieval(Evaluator):
    """Training images nearest to each test image: precision at k, and a figure (Sonawane et al. 2021, section 5.2).

    precision_k is the share of the k nearest that have the query's class, averaged over all test images. The figure
    has a row per class; its query is drawn by the seed, so it is no hand-picked example.
    """

    class Config(Evaluator.Config):
        metric: Metric = "euclidean"
        """Distance between features; the paper's is euclidean."""
        k: tuple[int, ...] = (1, 5, 10)
        """Numbers of neighbours for which precision is reported; at most as many as there are training images."""
        rows: int = Field(10, ge=1)
        """Largest number of classes in the figure."""
        neighbours: int = Field(8, ge=1)
        """Number of neighbours in the figure."""

        @field_validator("k")
        @classmethod
        def _counts(cls, k: tuple[int, ...]) -> tuple[int, ...]:
            if not k or min(k) < 1:
                raise ValueError("must be one or more numbers of at least 1")
            return k

    config: Config

    @property
    def protocol(self) -> str:
        ks = ", ".join(map(str, self.config.k))
        return f"{self.config.metric} nearest training images of every test image, precision at {ks}"

    @torch.no_grad()
    def __call__(self, subject: Subject) -> dict[str, float]:
        f = subject.features
        most = max(*self.config.k, self.config.neighbours)
        neighbours = torch.cat([rows for _, rows in nearest(f.train_x, f.test_x, most, self.config.metric)])
        hits = f.train_y[neighbours] == f.test_y[:, None]
        self._draw(subject, neighbours, hits)
        return {f"precision_{k}": hits[:, :k].double().mean().item() for k in self.config.k}

    def _draw(self, subject: Subject, neighbours: Tensor, hits: Tensor) -> None:
        from sslkit.evaluation.drawing import pictures

        f = subject.features
        queries = _one_a_class(f.test_y, subject.seed)[: self.config.rows]
        shown = neighbours[queries, : self.config.neighbours]
        right = hits[queries, : self.config.neighbours]
        alt = (
            f"Test images of {len(queries)} classes, each with its {shown.shape[1]} nearest training images: "
            f"{int(right.sum())} of {right.numel()} have the query's class"
        )
        if not (path := pictures.place(subject, "retrieval.png", alt)):
            return
        names = class_names(subject, f.classes)
        query_images = thumbnails(subject.test, labelled_rows(subject.test)[queries.cpu().numpy()], pictures.THUMBNAIL)
        rows = labelled_rows(subject.train)[shown.cpu().numpy()]
        neighbour_images = thumbnails(subject.train, rows.ravel(), pictures.THUMBNAIL)
        cells = _cells(query_images, neighbour_images, f.train_y[shown].cpu().numpy(), right.cpu().numpy(), names)
        columns = ["query", *(f"{k}." for k in range(1, shown.shape[1] + 1))]
        pictures.image_table(path, cells, [names[c] for c in f.test_y[queries].tolist()], columns)


def _one_a_class(labels: Tensor, seed: int) -> Tensor:
    """Draw a test image of each class that occurs by the seed, in class order."""
    generator = np.random.default_rng(seed)
    numbers = labels.cpu().numpy()
    return torch.tensor(
        [generator.choice(np.flatnonzero(numbers == c)) for c in np.unique(numbers)], device=labels.device
    )


def _cells(
    queries: np.ndarray, neighbours: np.ndarray, classes: np.ndarray, right: np.ndarray, names: list[str]
) -> list[list["Cell"]]:
    from sslkit.evaluation.drawing.pictures import Cell

    neighbours = neighbours.reshape(*classes.shape, *neighbours.shape[1:])
    return [
        [Cell(query), *(Cell(image, names[c], bool(r)) for image, c, r in zip(*row))]
        for query, *row in zip(queries, neighbours, classes, right)
    ]
