"""Confusion between classes: how often each true class is predicted as which."""

import csv
import io
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sslkit.evaluation.drawing.images import class_names
from sslkit.evaluation.evaluator import Evaluator, accuracy
from sslkit.evaluation.evaluators.knn import KNN
from sslkit.evaluation.evaluators.linear import Linear
from sslkit.evaluation.subject import Subject
from sslkit.machine import atomic


class Confusion(Evaluator):
    """Confusion matrix of the linear probe or of kNN: table, heat map, and the worst mistakes as notes.

    The classifiers are those of the evaluators `linear` and `knn` with their default settings. Besides top1 and top5,
    `worst_class` is the accuracy of the class with the lowest recall.
    """

    class Config(Evaluator.Config):
        classifier: Literal["linear", "knn"] = "linear"
        """Classifier of the test images."""
        pairs: int = Field(5, ge=0)
        """Number of the most frequent mistakes listed in the notes."""

    config: Config

    @property
    def protocol(self) -> str:
        return f"{self.config.classifier} classifier ({self._classifier().protocol})"

    def __call__(self, subject: Subject) -> dict[str, float]:
        features = subject.features
        ranking = self._predict(subject)
        matrix = confusion_matrix(ranking[:, 0], features.test_y, features.classes)
        names = class_names(subject, features.classes)
        self._note_mistakes(subject, matrix, names)
        _attach(subject, matrix, names)
        recall = matrix.diagonal() / matrix.sum(1)
        return accuracy(ranking, features.test_y, features.classes) | {
            "worst_class": recall[matrix.sum(1) > 0].min().item()
        }

    def _classifier(self) -> Linear | KNN:
        return Linear(Linear.Config()) if self.config.classifier == "linear" else KNN(KNN.Config())

    def _predict(self, subject: Subject) -> Tensor:
        f, classifier = subject.features, self._classifier()
        if isinstance(classifier, Linear):
            return classifier.predict(f.train_x, f.train_y, f.test_x, f.classes, subject.seed)
        return classifier.predict(f.train_x, f.train_y, f.test_x, f.classes)

    def _note_mistakes(self, subject: Subject, matrix: Tensor, names: list[str]) -> None:
        if not hasattr(subject, "note"):
            return
        for true, predicted, count in worst_pairs(matrix, self.config.pairs):
            total = int(matrix[true].sum())
            subject.note(f"{names[true]} taken for {names[predicted]}: {count} of {total}")


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return counts, int64 [classes, classes]: row the true class, column the predicted one."""
    flat = torch.bincount(labels * classes + predicted, minlength=classes**2)
    return flat.view(classes, classes).cpu()


def worst_pairs(matrix: Tensor, count: int) -> list[tuple[int, int, int]]:
    """Return the most frequent mistakes, (true, predicted, count), most frequent first; ties in class order."""
    wrong = matrix - matrix.diagonal().diag()
    pairs = sorted(wrong.nonzero().tolist(), key=lambda pair: -int(wrong[*pair]))
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs[:count]]


def _attach(subject: Subject, matrix: Tensor, names: list[str]) -> None:
    from sslkit.evaluation.drawing import pictures

    total, right = int(matrix.sum()), int(matrix.diagonal().sum())
    alt = f"Confusion matrix of {len(names)} classes: {right} of {total} test images lie on the diagonal"
    if path := pictures.place(subject, "confusion.png", alt):
        pictures.heat_map(path, matrix.numpy(), names, "taken for", "true class")
    if path := pictures.place(subject, "confusion.csv", "The same as a table: row the true class, column the guess"):
        atomic.write_text(path, as_csv(matrix, names))


def as_csv(matrix: Tensor, names: list[str]) -> str:
    """Format the matrix with a header line and a header column of class names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true class", *names])
    writer.writerows([name, *row] for name, row in zip(names, matrix.tolist()))
    return text.getvalue()
