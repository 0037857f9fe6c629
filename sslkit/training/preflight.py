"""Settings and checks of a new run: components' checks, enough data for a batch, devices, an empty run directory."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sslkit import plugins
from sslkit.config.base import Choice
from sslkit.config.layers import Layer, Mistakes
from sslkit.config.resolve import Draft, Resolved, draft_layers, words_layer
from sslkit.config.run import RunConfig
from sslkit.data import survey
from sslkit.errors import UserError
from sslkit.evaluation.evaluate import without_their_labels
from sslkit.runs import place, trackers
from sslkit.training.auto import fitted_advice
from sslkit.training.optim.optimizer import known_optimizer


def resolve_new(words: Iterable[str] = (), recipe: str | Path | None = None) -> Resolved:
    """Resolve the configuration of a new run like `resolve`, and also check it against the machine and the data.

    Raises UserError that lists every mistake.
    """
    mistakes = Mistakes()
    return resolve_new_layers([words_layer(words, recipe, mistakes)], mistakes)


def resolve_new_layers(layers: list[Layer], mistakes: Mistakes) -> Resolved:
    """Resolve layers, with settings that fit the task, and check them against the machine and the data."""
    draft = _fitted_draft(layers, mistakes)
    _check_components(draft, mistakes)
    if draft.config is not None:
        if draft.sections["method"] and draft.sections["data"]:
            _check_labels(draft.config, mistakes)
        _check_machine(draft.config, mistakes)
        _check_budget(draft, mistakes)
    return draft.resolved(mistakes)


def resolve_again(layers: list[Layer], mistakes: Mistakes) -> Resolved:
    """Resolve the layers of a run that exists already: as a new run, without the checks that only a new one passes."""
    return _fitted_draft(layers, mistakes).resolved(mistakes)


def look_at_data(config: RunConfig) -> list[str]:
    """Say what the data hold, and which evaluators cannot run on them, one sentence a line. Raises UserError."""
    found = survey(config.data, config.eval_data, config.seed)
    left_out = without_their_labels(config.evaluators, found)
    return [*found.lines, left_out] if left_out else list(found.lines)


def _fitted_draft(layers: list[Layer], mistakes: Mistakes) -> Draft:
    return draft_layers(layers, mistakes, fitted_advice)


def _check_budget(draft: Draft, mistakes: Mistakes) -> None:
    assert draft.config is not None
    if draft.config.budget is None:
        return
    if draft.origins.get("epochs") == draft.origins["budget"]:
        mistakes.add("epochs", "budget chooses the number of epochs; give one of the two")
    if draft.config.devices > 1:
        mistakes.add("budget", "works with one process only; give the number of epochs, or devices=1")


def _check_components(draft: Draft, mistakes: Mistakes) -> None:
    """Add the mistakes that components find in their own settings, and a batch larger than the data."""
    sections, batch_size = draft.sections, draft.values.get("batch_size")
    named = {**sections, **{f"evaluators.{e.name}": e for e in draft.evaluators}}
    wrong = {section: list(choice.options.check()) for section, choice in named.items() if choice}
    for section, messages in wrong.items():
        for message in messages:
            mistakes.add(section, message)
    data, eval_data = sections["data"], sections.get("eval_data")
    if eval_data and not wrong["eval_data"]:
        _find_parts("eval_data", eval_data, mistakes)
    if data and not wrong["data"]:
        default = RunConfig.model_fields["batch_size"].default
        size = _compare_with_data(data, default if batch_size is None else batch_size, mistakes)
        if size and sections["method"] and sections["backbone"] and not wrong["backbone"]:
            _check_network(sections["method"], sections["backbone"], size, mistakes)


def _compare_with_data(data: Choice, batch_size: Any, mistakes: Mistakes) -> int | None:
    """Add a batch that is larger than the data; return the image size, None if it is not known without a download."""
    count, size = _find_parts("data", data, mistakes)
    if count is not None and isinstance(batch_size, int) and batch_size > count:
        mistakes.add("batch_size", f"{batch_size} is more than the {count} images of the data; lower it")
    return size


def _find_parts(section: str, data: Choice, mistakes: Mistakes) -> tuple[int | None, int | None]:
    """Return number and size of the images to pre-train on, as far as known; add what is wrong with the parts."""
    try:
        source = plugins.find("datasets", data.name)(data.options)
        count: int | None = source.count()
        if count is not None:
            # Its mistakes, such as a class without training images, would otherwise come after packing.
            source.images("test")
        return count, source.image_size() if count else None
    except UserError as error:
        mistakes.add(section, str(error))
        return None, None


def _check_network(method: Choice, backbone: Choice, image_size: int, mistakes: Mistakes) -> None:
    """Add a backbone that does not exist, does not take images of that size, or whose weights do not fit."""
    import torch

    from sslkit.backbones import create_backbone
    from sslkit.nn.modes import own_random

    trained = plugins.find("methods", method.name).trained_backbone(backbone)
    with own_random(0):
        try:
            # Without memory for its weights, which takes a moment; what only fails without them is tried with them.
            with suppress(Exception), torch.device("meta"):
                create_backbone(trained, image_size)
                return
            create_backbone(trained, image_size)
        except UserError as error:
            mistakes.add("backbone", str(error))


def _check_labels(config: RunConfig, mistakes: Mistakes) -> None:
    """Add a mistake for a method that needs labels if it is known, before packing, that there are none."""
    if not plugins.find("methods", config.method.name).uses_labels:
        return
    source = plugins.find("datasets", config.data.name)(config.data.options)
    try:
        images = None if source.count() is None else source.images("pretrain")
    except UserError:
        # It is among the mistakes already.
        return
    if images is not None and images.unlabelled:
        mistakes.add("method", f"{config.method.name} needs labels, and the data has none: {images.unlabelled}")


def _check_machine(config: RunConfig, mistakes: Mistakes) -> None:
    """Add mistakes about optimizers and trackers not installed, a non-empty run directory, devices and batch sizes."""
    if problem := known_optimizer(config.optimizer.name):
        mistakes.add("optimizer.name", problem)
    if unusable := place.problem(config):
        mistakes.add("out", unusable)
    if missing := _device_missing(config.device, config.devices):
        mistakes.add("device", missing)
    try:
        trackers.check(config.trackers)
    except UserError as error:
        mistakes.add("trackers", str(error).removeprefix("trackers: "))
    _compare_batches(config, mistakes)


def _compare_batches(config: RunConfig, mistakes: Mistakes) -> None:
    share, rest = divmod(config.batch_size, config.devices)
    if rest:
        mistakes.add(
            "devices", f"batch_size={config.batch_size} cannot be divided by {config.devices}; make it a multiple"
        )
    elif config.micro_batch and share % config.micro_batch:
        divided = f"the {share} images of each process" if config.devices > 1 else f"batch_size={share}"
        mistakes.add("micro_batch", f"{config.micro_batch} does not divide {divided}; choose a divisor")


def _device_missing(device: str, devices: int) -> str | None:
    import torch

    on_gpus = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpus and 0 < torch.cuda.device_count() < devices:
        return f"devices={devices}, but there are {torch.cuda.device_count()} GPUs here; lower it, or use device=cpu"
    if devices > 1 and ":" in device:
        return f"{device} is one device, but devices={devices}; use device=cuda"
    if device.startswith("cuda") and not torch.cuda.is_available():
        return f"{device} is not available here; use device=cpu, or see `sslkit doctor`"
    if device == "mps" and not torch.backends.mps.is_available():
        return "mps is not available here; use device=cpu"
    return None
