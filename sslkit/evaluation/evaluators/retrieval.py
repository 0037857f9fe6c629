"""Nearest neighbours: what the backbone holds for similar."""

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
    """Training images nearest to each test image: precision at k, and a picture (Sonawane et al. 2021, section 5.2).

    precision_k is the share of the k nearest that have the query's class, averaged over all test images. The picture
    has a row a class; its query is drawn by the seed, so it is not a picked example.
    """

    class Config(Evaluator.Config):
        metric: Metric = "euclidean"
        """What near means; the paper's is euclidean."""
        k: tuple[int, ...] = (1, 5, 10)
        """How many neighbours; precision is told for each; at most as many as there are training images."""
        rows: int = Field(10, ge=1)
        """Classes in the picture, at most."""
        neighbours: int = Field(8, ge=1)
        """Neighbours in the picture."""

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
        found = torch.cat([rows for _, rows in nearest(f.train_x, f.test_x, most, self.config.metric)])
        hits = f.train_y[found] == f.test_y[:, None]
        self._draw(subject, found, hits)
        return {f"precision_{k}": hits[:, :k].double().mean().item() for k in self.config.k}

    def _draw(self, subject: Subject, found: Tensor, hits: Tensor) -> None:
        from sslkit.evaluation.drawing import pictures

        f = subject.features
        queries = _one_a_class(f.test_y, subject.seed)[: self.config.rows]
        shown = found[queries, : self.config.neighbours]
        right = hits[queries, : self.config.neighbours]
        alt = (
            f"Test images of {len(queries)} classes, each with its {shown.shape[1]} nearest training images: "
            f"{int(right.sum())} of {right.numel()} have the query's class"
        )
        if not (path := pictures.place(subject, "retrieval.png", alt)):
            return
        names = class_names(subject, f.classes)
        asked = thumbnails(subject.test, labelled_rows(subject.test)[queries.cpu().numpy()], pictures.THUMBNAIL)
        rows = labelled_rows(subject.train)[shown.cpu().numpy()]
        given = thumbnails(subject.train, rows.ravel(), pictures.THUMBNAIL)
        cells = _cells(asked, given, f.train_y[shown].cpu().numpy(), right.cpu().numpy(), names)
        columns = ["query", *(f"{k}." for k in range(1, shown.shape[1] + 1))]
        pictures.image_table(path, cells, [names[c] for c in f.test_y[queries].tolist()], columns)


def _one_a_class(labels: Tensor, seed: int) -> Tensor:
    """A test image of each class that occurs, in class order, drawn by the seed."""
    generator = np.random.default_rng(seed)
    known = labels.cpu().numpy()
    return torch.tensor([generator.choice(np.flatnonzero(known == c)) for c in np.unique(known)], device=labels.device)


def _cells(
    asked: np.ndarray, given: np.ndarray, classes: np.ndarray, right: np.ndarray, names: list[str]
) -> list[list["Cell"]]:
    from sslkit.evaluation.drawing.pictures import Cell

    given = given.reshape(*classes.shape, *given.shape[1:])
    return [
        [Cell(query), *(Cell(image, names[c], bool(r)) for image, c, r in zip(*row))]
        for query, *row in zip(asked, given, classes, right)
    ]
