"""Robustness: the accuracy that is left on corrupted images."""

import csv
import io
from statistics import fmean

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sslkit.evaluation.drawing.images import features_of_changed, labelled_rows
from sslkit.evaluation.evaluator import Evaluator
from sslkit.evaluation.evaluators import logistic
from sslkit.evaluation.evaluators.corruptions import CORRUPTIONS, SEVERITIES, SMALL, corrupt
from sslkit.evaluation.subject import Subject
from sslkit.machine import atomic


class Robustness(Evaluator):
    """Accuracy under common corruptions at five severities (Hendrycks & Dietterich 2019).

    A linear probe is trained once, on clean images, and predicts clean and corrupted test images. Results are
    accuracies: `clean_top1`, each corruption's mean over the severities, and `corrupted`, the mean of those.
    """

    class Config(Evaluator.Config):
        corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
        """Corruptions to apply, by name."""
        l2: float = Field(1.0, ge=0)
        """L2 penalty of the probe: l2/2 · ‖W‖² is added to the summed loss (scikit-learn's 1/C)."""

        @field_validator("corruptions")
        @classmethod
        def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
            if not names or (unknown := [n for n in names if n not in CORRUPTIONS]):
                raise ValueError(
                    f"must be some of {', '.join(CORRUPTIONS)}, not {', '.join(unknown) if names else 'none'}"
                )
            return names

    config: Config

    @property
    def protocol(self) -> str:
        return (
            f"linear probe (L-BFGS, l2={self.config.l2:g}) trained on clean images, tested at severities 1 to 5 of "
            f"{', '.join(self.config.corruptions)} (CIFAR-10-C's up to {SMALL} px, ImageNet-C's above)"
        )

    def __call__(self, subject: Subject) -> dict[str, float]:
        f = subject.features
        probe = logistic.fit(f.train_x, f.train_y, f.classes, l2=self.config.l2)
        clean = _score(probe, f.test_x, f.test_y)
        curves = {
            name: [_score(probe, _corrupted(subject, name, severity), f.test_y) for severity in SEVERITIES]
            for name in self.config.corruptions
        }
        _attach(subject, clean, curves)
        means = {name: fmean(values) for name, values in curves.items()}
        return {"clean_top1": clean, "corrupted": fmean(means.values()), **means}


def _score(probe: logistic.Probe, x: Tensor, y: Tensor) -> float:
    return logistic.share_right(probe.ranking(x)[:, 0], y)


def _corrupted(subject: Subject, name: str, severity: int) -> Tensor:
    """Features of the corrupted test images."""
    generator = torch.Generator().manual_seed(subject.seed)

    def change(images: Tensor, places: Tensor) -> Tensor:
        return corrupt(name, severity, images, generator)

    return features_of_changed(subject, subject.test, labelled_rows(subject.test), change)


def _attach(subject: Subject, clean: float, curves: dict[str, list[float]]) -> None:
    from sslkit.evaluation.drawing import pictures

    worst = ", ".join(f"{name} {values[-1]:.0%}" for name, values in curves.items())
    alt = f"Accuracy over severity, from {clean:.0%} on clean images to, at severity 5: {worst}"
    lines = {name.replace("_", " "): [clean, *values] for name, values in curves.items()}
    if path := pictures.place(subject, "robustness.png", alt):
        pictures.curves(path, [0, *SEVERITIES], lines, "severity (0: clean)", "top-1 accuracy")
    if path := pictures.place(
        subject, "robustness.csv", "The same as a table: one line per corruption, one column per severity"
    ):
        atomic.write_text(path, _as_csv(clean, curves))


def _as_csv(clean: float, curves: dict[str, list[float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["corruption", "clean", *SEVERITIES])
    writer.writerows([name, clean, *values] for name, values in curves.items())
    return text.getvalue()
