"""Run evaluators on a backbone and return their records."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sslkit import plugins
from sslkit.backbones.backbone import width_of
from sslkit.config.base import Choice
from sslkit.config.components import config_class
from sslkit.config.run import RunConfig
from sslkit.errors import UserError
from sslkit.evaluation import Subject
from sslkit.evaluation.extraction import Preprocessing
from sslkit.evaluation.floors import Floors, measure_floors
from sslkit.machine.precision import exact_products
from sslkit.machine.stopwatch import Stopwatch
from sslkit.runs.records import FLOORS, is_accuracy, wilson

if TYPE_CHECKING:
    from sslkit.data import Stores


def evaluate(
    backbone: nn.Module,
    evaluators: Iterable[Choice],
    stores: "Stores",
    device: torch.device,
    seed: int,
    floors: Mapping[str, Floors] | None = None,
    wanted_floors: Iterable[str] = FLOORS,
    **about: Any,
) -> Iterator[dict[str, Any]]:
    """Yield one record per evaluator, as stored in evaluations.jsonl. Features are extracted once and shared.

    TF32 is disabled, whatever the process allows. If there are no labelled images, evaluators that need no labels run
    on the images of pre-training.

    floors: known floors by evaluator, put beside its accuracy; `wanted_floors` that are missing are measured. None: no
    floors. about: further arguments of `Subject`: initial, head, folder, cache.
    Raises UserError, before anything is measured, if there are no labels and an evaluator needs them.
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
        Preprocessing(stores.image_size, stores.mean, stores.std, device),
        seed=seed,
        **about,
    )
    for choice in evaluators:
        # Runs allow TF32, but evaluations must be reproducible elsewhere. The context excludes `yield`, because it must
        # not affect the caller.
        with exact_products():
            record = _measure(subject, choice, stores)
            if floors is not None and plugins.find("evaluators", choice.name).judges_features:
                record["floors"] = measure_floors(subject, choice, floors.get(choice.name, {}), wanted_floors)
        yield record


def possible(evaluators: Iterable[Choice], stores: "Stores") -> list[Choice]:
    """Return the evaluators that can run: all of them, or those that need no labels if there are no labelled images."""
    if stores.train is not None and stores.test is not None:
        return list(evaluators)
    return [e for e in evaluators if not plugins.find("evaluators", e.name).needs_labels]


def _measure(subject: Subject, choice: Choice, stores: "Stores") -> dict[str, Any]:
    evaluator = plugins.find("evaluators", choice.name)(choice.options)
    subject.begin(choice.name)
    with Stopwatch(subject.device) as watch:
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
        "seconds": round(watch.seconds, 3),
        **_with_intervals(metrics, len(subject.test)),
        **({"files": subject.files} if subject.files else {}),
        **({"notes": subject.notes} if subject.notes else {}),
    }


def _with_intervals(metrics: dict[str, float], n: int) -> dict[str, float]:
    """Add the bounds of 95 % intervals to accuracies, unless the evaluator, on other images, returned its own."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        found[name] = value
        if is_accuracy(name) and f"{name}_low" not in metrics:
            found[f"{name}_low"], found[f"{name}_high"] = wilson(value, n)
    return found


def projection_head(method: nn.Module) -> nn.Module | None:
    """Return a copy of a method's projection head, [N, width] -> [N, d], in eval mode; None if it has none."""
    name = head_name(method)
    return deepcopy(getattr(method, name)).eval() if name else None


def head_name(method: nn.Module) -> str | None:
    """Return the attribute name of a method's projection head: `projector`, or `head` if that takes features."""
    width = width_of(method.get_submodule("backbone"))
    return next((n for n in ("projector", "head") if _takes(getattr(method, n, None), width)), None)


@torch.no_grad()
def _takes(head: Any, width: int) -> bool:
    """Return True if `head` maps features [N, width] to [N, d]; a copy is tried, so that `head` is left unchanged."""
    if not isinstance(head, nn.Module):
        return False
    weight = next(head.parameters(), torch.empty(0))
    try:
        out = deepcopy(head).eval()(weight.new_zeros(2, width))
    except (RuntimeError, ValueError, TypeError):
        return False
    return isinstance(out, torch.Tensor) and out.ndim == 2


def untrained(config: RunConfig, image_size: int) -> nn.Module:
    """Return the run's backbone with random weights, drawn from torch's global generator."""
    from sslkit.backbones import create_backbone

    choice = plugins.find("methods", config.method.name).trained_backbone(config.backbone)
    known = config_class(plugins.find("backbones", choice.name)).model_fields
    return create_backbone(choice, image_size, **({"pretrained": None} if "pretrained" in known else {}))
