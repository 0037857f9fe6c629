"""Nearest-neighbour retrieval: which images the backbone considers similar."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from sslkit.errors import UserError
from sslkit.evaluation.drawing.images import class_names, drawn, labelled_rows, thumbnails
from sslkit.evaluation.evaluator import Evaluator
from sslkit.evaluation.evaluators.neighbours import Metric, nearest
from sslkit.evaluation.subject import Subject

if TYPE_CHECKING:
    from sslkit.evaluation.drawing.pictures import Cell


class Retrieval(Evaluator):
    """Training images nearest to each test image: precision at k, and a figure (Sonawane et al. 2021, section 5.2).

    precision_k is the share of the k nearest that have the query's class, averaged over all test images. The figure
    has a row per class; its query is drawn by the seed, so it is no hand-picked example.

    Without labels, images are compared with each other, and queries are drawn by the seed. `mutual_1` is the share of
    images that are the nearest of their own nearest one: it is low where a few images are near to everything (hubs,
    Radovanović et al. 2010).
    """

    class Config(Evaluator.Config):
        metric: Metric = "euclidean"
        """Distance between features; the paper's is euclidean."""
        k: tuple[int, ...] = (1, 5, 10)
        """Numbers of neighbours for which precision is reported; at most as many as there are training images."""
        rows: int = Field(10, ge=1)
        """Largest number of classes in the figure; without labels, of queries."""
        neighbours: int = Field(8, ge=1)
        """Number of neighbours in the figure."""
        images: int = Field(10_000, ge=2)
        """Without labels: largest number of images that are compared, drawn by the seed."""

        @field_validator("k")
        @classmethod
        def _counts(cls, k: tuple[int, ...]) -> tuple[int, ...]:
            if not k or min(k) < 1:
                raise ValueError("must be one or more numbers of at least 1")
            return k

    config: Config
    needs_labels = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.compared: int | None = None
        """Number of images that were compared without labels; None: there are labels."""

    @property
    def protocol(self) -> str:
        if self.compared is not None:
            return f"{self.config.metric} nearest of {self.compared} images of each one, how often mutual"
        ks = ", ".join(map(str, self.config.k))
        return f"{self.config.metric} nearest training images of every test image, precision at {ks}"

    @torch.no_grad()
    def __call__(self, subject: Subject) -> dict[str, float]:
        if not subject.labelled:
            return self._without_labels(subject)
        f = subject.features
        most = max(*self.config.k, self.config.neighbours)
        neighbours = torch.cat([rows for _, rows in nearest(f.train_x, f.test_x, most, self.config.metric)])
        hits = f.train_y[neighbours] == f.test_y[:, None]
        self._draw(subject, neighbours, hits)
        return {f"precision_{k}": hits[:, :k].double().mean().item() for k in self.config.k}

    def _without_labels(self, subject: Subject) -> dict[str, float]:
        rows = drawn(len(subject.test), self.config.images, subject.seed)
        if len(rows) < 2:
            raise UserError("retrieval compares images, and there is only one; name a folder with more")
        self.compared = len(rows)
        x = subject.features_without_labels(rows)
        neighbours = _others(x, self.config.neighbours, self.config.metric)
        self._draw_without_labels(subject, rows, neighbours.cpu().numpy())
        back = neighbours[neighbours[:, 0], 0]
        return {"mutual_1": (back == torch.arange(len(x), device=x.device)).double().mean().item()}

    def _draw_without_labels(self, subject: Subject, rows: NDArray[np.int64], neighbours: NDArray[np.int64]) -> None:
        from sslkit.evaluation.drawing import pictures

        queries = drawn(len(rows), self.config.rows, subject.seed)
        shown = neighbours[queries]
        alt = f"{len(queries)} images drawn by the seed, each with the {shown.shape[1]} nearest of {len(rows)} images"
        if not (path := pictures.place(subject, "retrieval.png", alt)):
            return
        table = rows[np.concatenate([queries[:, None], shown], 1)]
        images = thumbnails(subject.test, table.ravel(), pictures.THUMBNAIL)
        cells = [[pictures.Cell(image) for image in row] for row in images.reshape(*table.shape, *images.shape[1:])]
        names = subject.test.names
        titles = [Path(names[row]).name if names else f"image {row}" for row in rows[queries]]
        pictures.image_table(path, cells, titles, _columns(shown.shape[1]))

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
        titles = [names[c] for c in f.test_y[queries].tolist()]
        pictures.image_table(path, cells, titles, _columns(shown.shape[1]))


def _columns(neighbours: int) -> list[str]:
    return ["query", *(f"{k}." for k in range(1, neighbours + 1))]


def _others(x: Tensor, k: int, metric: Metric) -> Tensor:
    """Return the rows of the k nearest other images of each image, nearest first, [n, min(k, n - 1)]."""
    k = min(k, len(x) - 1)
    found = torch.cat([rows for _, rows in nearest(x, x, k + 1, metric)])
    itself = found == torch.arange(len(x), device=x.device)[:, None]
    # Copies are as near as the image itself, which need not come first.
    last = itself.long().argsort(dim=1, stable=True)
    return found.gather(1, last)[:, :k]


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
