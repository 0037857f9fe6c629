"""The contract of an evaluator."""

import copy
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.evaluation.evaluator import Evaluator
from sslkit.evaluation.extraction import Features
from sslkit.evaluation.subject import Subject
from sslkit.runs.records import is_accuracy
from sslkit.testing.contract import checked_settings, expect, seeded
from sslkit.testing.examples import example_subject, unlabelled_subject


def check_evaluator(evaluator_class: type[Evaluator], **options: Any) -> None:
    """Check an evaluator on three well-separated classes: plain, reproducible results.

    It is given a whole `Subject`: images, TinyBackbone, a projection head, a folder for figures; and if it needs
    no labels, also an unlabelled one.
    """
    expect(issubclass(evaluator_class, Evaluator), "an evaluator is a subclass of sslkit.evaluation.Evaluator")
    config = checked_settings(evaluator_class, options)
    with seeded(0), tempfile.TemporaryDirectory() as folder:
        subject = example_subject(Path(folder))
        features = copy.deepcopy(subject.features)
        weights = copy.deepcopy(subject.backbone.state_dict())
        evaluator = evaluator_class(config)
        state = torch.get_rng_state()
        results = evaluator(subject)
        untouched = torch.equal(state, torch.get_rng_state())
        again = evaluator_class(config)(subject)
        _check_attached(subject, Path(folder))
        if not evaluator_class.needs_labels:
            _check_figures(evaluator_class(config)(unlabelled_subject(Path(folder))))
    expect(untouched, "an evaluator must draw from its own torch.Generator: the run's random numbers go on after it")
    _check_figures(results)
    first, second = (_repeatable(evaluator_class, figures) for figures in (results, again))
    expect(first == second, f"an evaluator must give the same figures each time, not {first} and then {second}")
    _check_kept(subject, features, weights)
    protocol = evaluator.protocol
    expect(isinstance(protocol, str) and bool(protocol), "protocol must describe how the results were obtained")


def _repeatable(evaluator_class: type, figures: dict[str, float]) -> dict[str, float | None]:
    """Results with the values of those that may vary replaced by None."""
    varies = getattr(evaluator_class, "varies", ())
    return {name: None if name.startswith(tuple(varies)) else value for name, value in figures.items()}


def _check_kept(subject: Subject, features: Features, weights: dict[str, Tensor]) -> None:
    for name in ("train_x", "train_y", "test_x", "test_y"):
        same = torch.equal(getattr(features, name), getattr(subject.features, name))
        expect(same, f"an evaluator must not change {name}: others use it too")
    same = all(torch.equal(v, weights[k]) for k, v in subject.backbone.state_dict().items())
    expect(same and subject.backbone.training, "an evaluator must leave the backbone as it was: train subject.fresh()")


def _check_attached(subject: Subject, folder: Path) -> None:
    for file in subject.files:
        expect((folder / file["path"]).is_file(), f"{file['path']} was attached, but not written")
        expect(bool(file["alt"].strip()), f"{file['path']} needs a text alternative")
    expect(all(isinstance(note, str) and note for note in subject.notes), "notes must be sentences")


def _check_figures(results: Any) -> None:
    expect(isinstance(results, dict) and len(results) > 0, "an evaluator must return a dict of figures")
    for name, value in results.items():
        figure = isinstance(name, str) and type(value) in (float, int) and math.isfinite(value)
        expect(figure, f"{name} must be a plain finite number, not {value!r}: call float() on it")
    for name in [name for name in results if is_accuracy(name)]:
        expect(0 <= results[name] <= 1, f"{name} must be a fraction from 0 to 1, not {results[name]}")
    if "top1" in results:
        expect(
            results["top1"] > 0.9,
            f"top1 must be near 1 on classes that lie far apart, not {results['top1']}",
        )
