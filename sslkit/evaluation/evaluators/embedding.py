"""Two-dimensional embedding of the features, which shows how the backbone arranges the images, labelled or not."""

import json
import warnings
from importlib.util import find_spec
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sslkit.evaluation.drawing.images import class_names, drawn, labelled_rows, thumbnails
from sslkit.evaluation.evaluator import Evaluator
from sslkit.evaluation.subject import Subject
from sslkit.machine import atomic

SPRITE = 32
"""Side in pixels of a thumbnail in the sprite sheet."""
BEFORE = 50
"""PCA components given to t-SNE (van der Maaten and Hinton 2008, section 4.2: 30; scikit-learn advises 50)."""


class Embedding(Evaluator):
    """t-SNE and PCA of the test features: a figure, and the data of the report's explorer.

    t-SNE after van der Maaten and Hinton 2008, computed by openTSNE if it is installed, else by scikit-learn.
    Class labels only colour the points, and are not needed. Results: `pca_variance`, the share of the variance that
    two components keep, and the trustworthiness of both embeddings (Venna and Kaski 2001): how far a point's 5 nearest
    neighbours in the plane are its neighbours among the features, at most 1.
    """

    class Config(Evaluator.Config):
        max_images: int = Field(2000, ge=4)
        """Largest number of test images, drawn by the seed."""
        perplexity: float = Field(30.0, gt=1)
        """t-SNE: effective number of neighbours; at most a third of the images."""

    config: Config
    needs_labels = False

    @property
    def protocol(self) -> str:
        c = self.config
        by = "openTSNE" if find_spec("openTSNE") else "scikit-learn"
        method = f"PCA, and t-SNE of its {BEFORE} first components ({by}), perplexity {c.perplexity:g}"
        return f"up to {c.max_images} images; {method}"

    def __call__(self, subject: Subject) -> dict[str, float]:
        x, labels, rows = _drawn_features(subject, self.config.max_images)
        components, variance = pca(x)
        points = {"PCA": components[:, :2], "t-SNE": tsne(components, self.config.perplexity, subject.seed)}
        _attach(subject, points, labels, rows)
        return {"pca_variance": variance} | {
            f"{key}_trustworthiness": _trust(x, points[name]) for key, name in (("pca", "PCA"), ("tsne", "t-SNE"))
        }


Labels = NDArray[np.int64] | None


def _drawn_features(subject: Subject, most: int) -> tuple[NDArray[np.float64], Labels, NDArray[np.int64]]:
    """Return (features [n, width], class numbers [n] or None, positions) of images drawn by the seed.

    Positions are those among the labelled test images, or rows of the store if there are no labels.
    """
    if not subject.labelled:
        rows = drawn(len(subject.test), most, subject.seed)
        return subject.features_without_labels(rows).cpu().double().numpy(), None, rows
    f = subject.features
    rows = drawn(len(f.test_y), most, subject.seed)
    return f.test_x.cpu().double().numpy()[rows], f.test_y.cpu().numpy()[rows], rows


def pca(x: NDArray[np.floating]) -> tuple[NDArray[np.floating], float]:
    """Return (up to 50 principal components [n, ·], at least two; share of the variance that the first two keep)."""
    centred = x - x.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    components = left[:, :BEFORE] * sizes[:BEFORE]
    padding = max(0, 2 - components.shape[1])
    return np.pad(components, ((0, 0), (0, padding))), float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-300))


def tsne(x: NDArray[np.floating], perplexity: float, seed: int) -> NDArray[np.floating]:
    """Return points [n, 2]; perplexity is capped at a third of n, and up to three images keep their PCA positions."""
    perplexity = min(perplexity, (len(x) - 1) / 3)
    if perplexity <= 1:
        return x[:, :2]
    if find_spec("openTSNE"):
        return _open_tsne(x, perplexity, seed)
    from sklearn.manifold import TSNE

    result: NDArray[np.floating] = (
        TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(x).astype(float)
    )
    return result


def _open_tsne(x: NDArray[np.floating], perplexity: float, seed: int) -> NDArray[np.floating]:
    from openTSNE import TSNE

    # Exact neighbours, because the approximate ones depend on the number of threads.
    engine = TSNE(perplexity=perplexity, initialization="pca", neighbors="exact", random_state=seed, n_jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(engine.fit(x), float)


def _trust(x: NDArray[np.floating], points: NDArray[np.floating]) -> float:
    from sklearn.manifold import trustworthiness

    # Trustworthiness is defined for neighbourhoods of less than half the points.
    neighbours = min(5, (len(x) - 1) // 2)
    return float(trustworthiness(x, points, n_neighbors=neighbours)) if neighbours else 1.0


def _attach(subject: Subject, points: dict[str, NDArray[np.floating]], labels: Labels, rows: NDArray[np.int64]) -> None:
    from sslkit.evaluation.drawing import pictures

    names = [] if labels is None else class_names(subject, subject.features.classes)
    which = "images without labels" if labels is None else f"test images of {len(np.unique(labels))} classes"
    alt = f"PCA and t-SNE of {len(rows)} {which}, a point an image"
    if path := pictures.place(subject, "embedding.png", alt):
        pictures.scatter(path, points, labels, names)
    if sheet := pictures.place(subject, "embedding-sprite.jpg", "Thumbnails of these images"):
        columns = ceil(sqrt(len(rows)))
        stored = rows if labels is None else labelled_rows(subject.test)[rows]
        _write_sprite(sheet, thumbnails(subject.test, stored, SPRITE), columns)
        if path := pictures.place(subject, "embedding.json", "The points, as data"):
            sprite = {"file": sheet.name, "size": SPRITE, "columns": columns}
            _write_data(path, points, labels, names, sprite)


def _write_data(path: Path, points: dict[str, Any], labels: Labels, names: list[str], sprite: dict[str, Any]) -> None:
    data = {
        "tsne": points["t-SNE"].round(4).tolist(),
        "pca": points["PCA"].round(4).tolist(),
        "labels": None if labels is None else labels.tolist(),
        "classes": names,
        "sprite": sprite,
    }
    atomic.write_text(path, json.dumps(data, ensure_ascii=False))


def _write_sprite(path: Path, images: NDArray[np.uint8], columns: int) -> None:
    """Write thumbnail k in row k // columns, column k % columns."""
    from PIL import Image

    lines = ceil(len(images) / columns)
    sheet = np.zeros((lines * columns, SPRITE, SPRITE, 3), np.uint8)
    sheet[: len(images)] = images
    grid = sheet.reshape(lines, columns, SPRITE, SPRITE, 3).swapaxes(1, 2).reshape(lines * SPRITE, columns * SPRITE, 3)
    with atomic.replacing(path) as temporary:
        Image.fromarray(grid).save(temporary, "JPEG", quality=85)
