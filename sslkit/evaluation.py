"""Run evaluators on a backbone, and what their records say."""

import time
from collections.abc import Iterable, Iterator
from copy import deepcopy
from math import sqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sslkit import plugins
from sslkit.config import Choice, RunConfig, config_class
from sslkit.errors import UserError
from sslkit.evaluators import Subject
from sslkit.execution import exact_products

if TYPE_CHECKING:
    from sslkit.data import Stores

ABOUT = frozenset({"epoch", "step", "n_train", "n_test", "seed", "seconds", "during_run"})
"""Numbers of a record that describe it and are no result."""
Z95 = 1.959963984540054
"""Of a standard normal variable, 95 % lies within ± this."""


def evaluate(
    backbone: nn.Module,
    evaluators: Iterable[Choice],
    stores: "Stores",
    device: torch.device,
    seed: int,
    **about: Any,
) -> Iterator[dict[str, Any]]:
    """One record an evaluator, as evaluations.jsonl keeps it. Features are extracted once and shared.

    Products in float32 are exact, whatever the process allows besides.

    `about`: what `Subject` may be told besides: initial, head, folder, cache.
    Where there are no labels, evaluators that need none judge before the images of pre-training. Raises UserError,
    before anything is measured, where another is asked for.
    """
    evaluators = list(evaluators)
    if impossible := [e.name for e in evaluators if e not in possible(evaluators, stores)]:
        raise UserError(
            f"there are no labels to evaluate with, which {' and '.join(impossible)} cannot do without; "
            "name labelled images with eval_data="
        )
    subject = Subject(
        backbone,
        stores.train or stores.pretrain,
        stores.test or stores.pretrain,
        image_size=stores.image_size,
        mean=stores.mean,
        std=stores.std,
        device=device,
        seed=seed,
        **about,
    )
    for choice in evaluators:
        # A run allows TF32, and its figures must be those that anyone finds for the same weights. Not around `yield`:
        # what is done with a record is none of this.
        with exact_products():
            record = _measure(subject, choice, stores)
        yield record


def possible(evaluators: Iterable[Choice], stores: "Stores") -> list[Choice]:
    """All of them; where there are no labelled images, those that need none."""
    if stores.train is not None and stores.test is not None:
        return list(evaluators)
    return [e for e in evaluators if not plugins.find("evaluators", e.name).needs_labels]


def _measure(subject: Subject, choice: Choice, stores: "Stores") -> dict[str, Any]:
    evaluator = plugins.find("evaluators", choice.name)(choice.options)
    subject.begin(choice.name)
    began = time.perf_counter()
    metrics = evaluator(subject)
    return {
        "evaluator": choice.name,
        "protocol": evaluator.protocol,
        "settings": choice.options.model_dump(mode="json"),
        "data": stores.protocol,
        "split": "pretrain" if stores.test is None else "test",
        "n_train": len(subject.train),
        "n_test": len(subject.test),
        "seed": subject.seed,
        "seconds": round(time.perf_counter() - began, 3),
        **_with_intervals(metrics, len(subject.test)),
        **({"files": subject.files} if subject.files else {}),
        **({"notes": subject.notes} if subject.notes else {}),
    }


def _with_intervals(metrics: dict[str, float], n: int) -> dict[str, float]:
    """Accuracies with the ends of their intervals, unless the evaluator, measuring other images, gave its own."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        found[name] = value
        if is_accuracy(name) and f"{name}_low" not in metrics:
            found[f"{name}_low"], found[f"{name}_high"] = wilson(value, n)
    return found


def is_accuracy(name: str) -> bool:
    """Whether a figure is a fraction of test images: top1, top5, and names that end so, as scratch_top1 does."""
    return name.rpartition("_")[2] in ("top1", "top5")


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """Ends of the 95 % interval of an accuracy measured on `n` images, as fractions (Wilson 1927).

    It is about which images happened to be tested; other seeds of training are not in it.
    """
    centre = (accuracy + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    reach = Z95 / (1 + Z95**2 / n) * sqrt(accuracy * (1 - accuracy) / n + Z95**2 / (4 * n**2))
    # Rounding must not put the accuracy, at 0 or 1, outside its own interval.
    return max(0.0, min(accuracy, centre - reach)), min(1.0, max(accuracy, centre + reach))


def measured(record: dict[str, Any]) -> dict[str, float]:
    """What an evaluator found, without what is said about it: {"top1": 0.83, "top5": 0.99}."""
    ends = {f"{k}{end}" for k in record if is_accuracy(k) for end in ("_low", "_high")}
    return {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k not in ABOUT | ends}


def as_metrics(record: dict[str, Any]) -> dict[str, float]:
    """A record as plain floats for trackers: {"knn/top1": 0.83}."""
    return {f"{record['evaluator']}/{k}": v for k, v in measured(record).items()}


def projection_head(method: nn.Module) -> nn.Module | None:
    """A copy of a method's head, [N, width] -> [N, d], in eval mode; None where it has none of that form."""
    name = head_name(method)
    return deepcopy(getattr(method, name)).eval() if name else None


def head_name(method: nn.Module) -> str | None:
    """Which part of a method is its projection head: `projector`, or `head` where that takes features."""
    backbone: Any = method.backbone
    return next((n for n in ("projector", "head") if _takes(getattr(method, n, None), backbone.width)), None)


@torch.no_grad()
def _takes(head: Any, width: int) -> bool:
    """A copy is tried, for batch norm would note what it sees."""
    if not isinstance(head, nn.Module):
        return False
    weight = next(head.parameters(), torch.empty(0))
    try:
        out = deepcopy(head).eval()(weight.new_zeros(2, width))
    except (RuntimeError, ValueError, TypeError):
        return False
    return isinstance(out, torch.Tensor) and out.ndim == 2


def untrained(config: RunConfig, image_size: int) -> nn.Module:
    """The run's backbone with random weights, drawn from torch's global generator."""
    from sslkit.backbones import create_backbone

    choice = plugins.find("methods", config.method.name).trained_backbone(config.backbone)
    known = config_class(plugins.find("backbones", choice.name)).model_fields
    return create_backbone(choice, image_size, **({"pretrained": None} if "pretrained" in known else {}))
