"""Floors under a result: what the same evaluator finds without any pre-training.

Random initialisation is the untrained network; raw pixels take the place of its features; chance always answers the
most frequent class. Features worth their electricity beat all three. Figures without labels have no raw pixels.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit import plugins
from sslkit.config.base import Choice
from sslkit.evaluation.subject import Subject
from sslkit.nn.modes import eval_mode
from sslkit.runs.records import CHANCE, FLOORS, RANDOM_INIT, RAW_PIXELS, Floors

PIXELS = 32
"""Height and width of images whose pixels are features: larger ones are reduced, as photographs are to CIFAR's."""

Measure = Callable[[Subject, Choice], Any]
"""Measures a floor of an evaluator on the subject's images; None: it is not known."""


class RawPixels(nn.Module):
    """Pixels as features: views [N, 3, S, S] -> [N, 3·s·s], s at most 32."""

    def forward(self, views: Tensor) -> Tensor:
        if views.shape[-1] > PIXELS:
            views = F.interpolate(views, (PIXELS, PIXELS), mode="bilinear", antialias=True)
        return views.contiguous(memory_format=torch.contiguous_format).flatten(1)


def measure_floors(
    subject: Subject, choice: Choice, known: Mapping[str, Any], wanted: Iterable[str] = FLOORS
) -> Floors:
    """Return the wanted floors of an evaluator that has some; `known` ones are not measured again.

    Random initialisation is left out if it is not known how the subject's backbone is built.
    """
    judges = plugins.find("evaluators", choice.name).judges_features
    measures = MEASURES if judges else LABEL_FREE_MEASURES
    found = {n: known[n] if n in known else measures[n](subject, choice) for n in wanted if n in measures}
    return {name: value for name, value in found.items() if value is not None}


def _random_init(subject: Subject, choice: Choice) -> float | None:
    figures = _random_init_figures(subject, choice)
    return None if figures is None else figures["top1"]


def _random_init_figures(subject: Subject, choice: Choice) -> dict[str, float] | None:
    if not subject.can_start_anew:
        return None
    return _figures(_replaced(subject, subject.fresh(initial=True)), choice)


def _raw_pixels(subject: Subject, choice: Choice) -> float:
    options: Any = choice.options
    if "layer" in type(options).model_fields:
        options = options.model_copy(update={"layer": None})
    return _figures(_replaced(subject, RawPixels()), choice.model_copy(update={"options": options}))["top1"]


def _chance(subject: Subject, choice: Choice) -> float:
    """Accuracy of always answering the most frequent class of the test images."""
    labels = subject.features.test_y
    return int(labels.bincount().max()) / len(labels)


def _replaced(subject: Subject, network: nn.Module) -> Subject:
    images = (subject.train, subject.test, subject.preprocessing)
    return Subject(network.to(subject.device), *images, seed=subject.seed, labelled=subject.labelled)


def _label_free_chance(subject: Subject, choice: Choice) -> dict[str, float] | None:
    chance: dict[str, float] = plugins.find("evaluators", choice.name)(choice.options).chance(subject)
    return chance or None


def _figures(subject: Subject, choice: Choice) -> dict[str, float]:
    evaluator = plugins.find("evaluators", choice.name)(choice.options)
    with eval_mode(subject.backbone):
        figures: dict[str, float] = evaluator(subject)
    return figures


MEASURES: dict[str, Measure] = {RANDOM_INIT: _random_init, RAW_PIXELS: _raw_pixels, CHANCE: _chance}
LABEL_FREE_MEASURES: dict[str, Measure] = {RANDOM_INIT: _random_init_figures, CHANCE: _label_free_chance}
