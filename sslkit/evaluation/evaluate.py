"""Run evaluators on a backbone and return their records."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sslkit import plugins
from sslkit.backbones.backbone import width_of
from sslkit.config.base import Choice
from sslkit.config.components import without_weights
from sslkit.config.run import RunConfig
from sslkit.errors import UserError, shortened
from sslkit.evaluation import Subject
from sslkit.evaluation.extraction import Preprocessing
from sslkit.evaluation.floors import measure_floors
from sslkit.machine.precision import exact_products
from sslkit.machine.stopwatch import Stopwatch
from sslkit.runs.records import FLOORS, Floors, is_accuracy, settings_of, wilson

if TYPE_CHECKING:
    from sslkit.data import Stores
    from sslkit.data.overview import Survey


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
    on the images of pre-training; if there are, those that are only meant for images without labels do not run.

    floors: known floors by evaluator, put beside its results; `wanted_floors` that are missing are measured. None: no
    floors. about: further arguments of `Subject`: initial, head, folder, cache.
    Raises UserError, before anything is measured, if there are no labels and an evaluator needs them.
    """
    evaluators = list(evaluators)
    if impossible := without_their_labels(evaluators, stores):
        raise UserError(impossible)
    subject = Subject(
        backbone,
        stores.train or stores.pretrain,
        stores.test or stores.pretrain,
        Preprocessing(stores.image_size, stores.mean, stores.std, device),
        seed=seed,
        labelled=stores.labelled,
        **about,
    )
    for choice in possible(evaluators, stores):
        # Runs allow TF32, but evaluations must be reproducible elsewhere. The context excludes `yield`, because it must
        # not affect the caller.
        with exact_products():
            record = _measure(subject, choice, stores)
            evaluator = plugins.find("evaluators", choice.name)
            if floors is not None and (evaluator.judges_features or evaluator.beside_random_init):
                record["floors"] = measure_floors(subject, choice, floors.get(choice.name, {}), wanted_floors)
        yield record


def possible(evaluators: Iterable[Choice], stores: "Stores") -> list[Choice]:
    """Return the evaluators that apply to the images: those that need no labels if there are none.

    If there are labels, all but those that are set to be `only_unlabelled`.
    """
    if stores.labelled:
        return [e for e in evaluators if not getattr(e.options, "only_unlabelled", False)]
    return [e for e in evaluators if not plugins.find("evaluators", e.name).needs_labels]


def without_their_labels(evaluators: Iterable[Choice], stores: "Stores | Survey") -> str | None:
    """Return a sentence that names the evaluators that lack labels, and the remedy; None if there are none."""
    names = [e.name for e in evaluators if not stores.labelled and plugins.find("evaluators", e.name).needs_labels]
    needs = "needs" if len(names) == 1 else "need"
    if not names:
        return None
    because = f" ({stores.unlabelled})" if stores.unlabelled else ""
    return (
        f"there are no labels to evaluate with{because}, and {' and '.join(names)} {needs} them; "
        "name labelled images with eval_data="
    )


def _measure(subject: Subject, choice: Choice, stores: "Stores") -> dict[str, Any]:
    evaluator = plugins.find("evaluators", choice.name)(choice.options)
    subject.begin(choice.name)
    with Stopwatch(subject.device) as watch:
        metrics = evaluator(subject)
    _check_figures(choice.name, evaluator, metrics)
    return {
        "evaluator": choice.name,
        "protocol": evaluator.protocol,
        "settings": settings_of(choice),
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


def _check_figures(name: str, evaluator: Any, metrics: Any) -> None:
    """Raise UserError unless an evaluator returned what its contract asks for: numbers by name."""
    numbers = isinstance(metrics, dict) and all(isinstance(v, int | float) for v in metrics.values())
    if not numbers or not all(isinstance(key, str) for key in metrics):
        raise UserError(
            f"evaluator {name}: {type(evaluator).__name__} must return plain numbers by name, such as "
            f"{{'top1': 0.5}}, but returns {shortened(repr(metrics))}"
        )


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
    return create_backbone(choice, image_size, **without_weights(plugins.find("backbones", choice.name)))
