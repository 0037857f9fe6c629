"""Open the target of `sslkit evaluate`: a run, a weights file, or the name of a backbone."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sslkit import plugins
from sslkit.backbones.files import read_header
from sslkit.config.base import Choice
from sslkit.config.layers import Layer, Mistakes, flatten, parse_words
from sslkit.config.resolve import Resolved, resolve_layers
from sslkit.config.run import RunConfig
from sslkit.data import Stores, cache_dir, open_stores
from sslkit.errors import UserError
from sslkit.evaluation.evaluate import evaluate, head_name, possible, untrained, without_their_labels
from sslkit.machine.files import reading
from sslkit.nn.modes import own_random
from sslkit.runs.checkpoint import load_checkpoint, read_state
from sslkit.runs.records import known_floors
from sslkit.runs.run import Run, saved_settings
from sslkit.runs.settings import complete, missing_settings

if TYPE_CHECKING:
    from sslkit.backbones.files import Header
    from sslkit.runs.display import Display


@dataclass
class Target:
    """A network with the images and settings for its evaluation."""

    backbone: nn.Module
    config: RunConfig
    evaluators: tuple[Choice, ...]
    """Those of the settings that the images allow, and all that the command line names."""
    stores: Stores
    image_size: int
    """Height and width of the images that the network was built for, in pixels."""
    device: torch.device
    run: Run | None
    """The run, or None if the target is a file or the name of a backbone."""
    records_folder: Path | None
    """Folder for records: the run directory, or the setting `out`."""

    @property
    def folder(self) -> Path | None:
        """Folder for pictures: that of records, unless it cannot be written."""
        folder = self.records_folder
        return folder if folder and (not folder.exists() or os.access(folder, os.W_OK)) else None

    def records(self, evaluators: Iterable[Choice], **about: Any) -> Iterator[dict[str, Any]]:
        """Yield one record per evaluator; `about` overrides arguments of `Subject`."""
        evaluators = list(evaluators)
        known: dict[str, Any] = {
            "initial": lambda: untrained(self.config, self.image_size),
            "head": self.saved_head,
            "folder": self.folder,
            "floors": known_floors(self.run.evaluations if self.run else (), self.stores.protocol, evaluators),
            "cache": cache_dir(getattr(self.config.data.options, "cache", None)) / "features",
        }
        yield from evaluate(self.backbone, evaluators, self.stores, self.device, self.config.seed, **known | about)

    def saved_head(self, checkpoint: Path | None = None) -> nn.Module | None:
        """Return the method's projection head from a checkpoint, by default the newest; None if there is none."""
        from sslkit.methods.build import build_method

        folder = checkpoint or (self._matching_checkpoint() if self.run else None)
        if folder is None:
            return None
        method = build_method(self.config, self.stores)
        name = head_name(method)
        if name is None:
            return None
        with reading(folder, "delete it to leave it out"):
            saved = load_checkpoint(folder).model
        head: nn.Module = getattr(method, name)
        head.load_state_dict({k.removeprefix(f"{name}."): v for k, v in saved.items() if k.startswith(f"{name}.")})
        return head

    def _matching_checkpoint(self) -> Path | None:
        """Return the newest checkpoint, unless the run's backbone has been trained beyond it."""
        assert self.run is not None
        path = next(iter(self.run.checkpoints[::-1]), None)
        if path is None:
            return None
        with reading(path, "delete it to leave it out"):
            step = read_state(path)["step"]
        return path if self.run.progress.step in (None, step) else None


def evaluate_saved(target: str | Path, words: Iterable[str], display: "Display") -> list[dict[str, Any]]:
    """Evaluate a target as `sslkit evaluate RUN|FILE|NAME key=value...` does, and return the records.

    Records are appended to the evaluations.jsonl of a run, and pictures written to its figures; for a file or a name,
    to those of `out`, if given. Where they cannot be written, that is said after the figures. NAME is a plain backbone,
    with random weights unless `backbone.pretrained` is set.
    """
    opened = open_target(target, words, display)
    when = moment(opened.run, display) if opened.run else {}
    records, keeper = [], RecordKeeper(opened)
    for found in opened.records(opened.evaluators):
        record = {**when, **found}
        display.evaluation(record)
        keeper.keep(record)
        records.append(record)
    keeper.conclude(display)
    return records


class RecordKeeper:
    """Keeps the records of an evaluation in its folder; figures that cannot be kept are still shown."""

    def __init__(self, opened: Target) -> None:
        folder = opened.records_folder
        self._run = Run(folder, opened.config, {}) if folder else None
        self._problem: UserError | None = None

    def keep(self, record: dict[str, Any]) -> None:
        if self._run is None or self._problem:
            return
        try:
            with self._run.written(self._run.path):
                self._run.path.mkdir(parents=True, exist_ok=True)
            self._run.log_evaluation(record)
        except UserError as error:
            self._problem = error

    def conclude(self, display: "Display") -> None:
        """Say that figures were not kept, and why, if there were any."""
        if self._problem:
            display.always(f"the figures were not kept: {str(self._problem).partition('; ')[0]}")


def moment(run: Run, display: "Display") -> dict[str, Any]:
    """Return the epoch and step of the run's backbone file, as entries of a record; log if it is unfinished.

    Raises UserError if nothing says how many epochs the weights have seen.
    """
    progress = run.progress
    if progress.epoch is None:
        raise UserError(
            f"nothing in {run.path} says how far its weights were trained; go on with: {run.resume_command}"
        )
    if not progress.finished:
        display.log(f"{run.path} is unfinished: its weights have seen {progress.epoch:g} of {progress.planned} epochs")
    epoch = progress.epoch
    return {"epoch": int(epoch) if epoch == int(epoch) else epoch, "step": progress.step or 0, "during_run": False}


def open_target(target: str | Path, words: Iterable[str], display: "Display") -> Target:
    """Open the settings, images and network of a run, a weights file or the name of a backbone.

    Raises UserError for anything else, and for mistakes in the settings, all of which it lists.
    """
    from sslkit.machine.devices import pick_device

    path = Path(target)
    run = Run.open(path) if path.is_dir() else None
    file = run.backbone_file if run else path if path.is_file() else None
    if run and not run.backbone_file.is_file():
        raise UserError(f"{path} is unfinished: it has no weights yet; go on with: {run.resume_command}")
    resolved = _settings(file, run, str(target), words)
    config = resolved.config
    stores = open_stores(
        config.data,
        config.eval_data,
        config.seed,
        log=display.log,
        seen=resolved.origins.get("data.name") != "command line",
    )
    backbone, image_size = _network(file, config, stores.image_size)
    device = pick_device(config.device)
    backbone.to(device)
    if config.channels_last is not False:
        backbone.to(memory_format=torch.channels_last)
    folder = run.path if run else _asked_folder(resolved)
    return Target(backbone, config, _evaluators(resolved, stores, display), stores, image_size, device, run, folder)


def _evaluators(resolved: Resolved, stores: Stores, display: "Display") -> tuple[Choice, ...]:
    """Return the evaluators to run; those that lack labels are only left out where nobody has asked for them."""
    every = resolved.config.evaluators
    named = {key.split(".")[1] for key, origin in resolved.origins.items() if _names_evaluator(key, origin)}
    can = possible(every, stores)
    chosen = tuple(e for e in every if e in can or e.name in named)
    if chosen and (left_out := without_their_labels([e for e in every if e not in chosen], stores)):
        display.log(left_out)
    return chosen or every


def _names_evaluator(key: str, origin: str) -> bool:
    return key.startswith("evaluators.") and origin == "command line"


def _asked_folder(resolved: Resolved) -> Path | None:
    """Return `out` if it is given on the command line; a file's header contains the one of its run."""
    out = resolved.config.out if resolved.origins.get("out") == "command line" else None
    if out and (out / "config.yaml").exists():
        raise UserError(f"{out} is a run, to which no other records may be added; choose another out")
    return out


def _network(file: Path | None, config: RunConfig, image_size: int) -> tuple[nn.Module, int]:
    """Return the network and the image size that it was built for."""
    from sslkit.backbones import create_backbone, load_backbone

    if file and read_header(file):
        loaded = load_backbone(file)
        return loaded.net, loaded.image_size
    with own_random(config.seed):
        return create_backbone(config.backbone, image_size=image_size), image_size


USED = ("data", "eval_data", "evaluators", "seed", "device", "channels_last")
"""Settings that an evaluation reads whatever its target is."""


def _settings(file: Path | None, run: Run | None, target: str, words: Iterable[str]) -> Resolved:
    """Resolve the settings of the run, the file's header or the name, together with the command line."""
    mistakes = Mistakes()
    given = Layer("command line", parse_words(words, mistakes))
    if run:
        layers = [saved_settings(run.path, mistakes), given]
        _refuse_others(target, given, USED, mistakes)
    elif file is None:
        _check_name(target)
        _demand(["data"], target, given, mistakes)
        _refuse_others(target, given, (*USED, "backbone", "out", "recipe"), mistakes)
        layers = [given, _fixed("backbone.name", target, given, mistakes)]
    elif header := read_header(file):
        layers = [_of_header(file, header, given, mistakes), given]
        _refuse_others(target, given, (*USED, "out"), mistakes)
    else:
        _demand(["backbone", "data"], target, given, mistakes)
        _refuse_others(target, given, (*USED, "backbone", "out", "recipe"), mistakes)
        layers = [given, _fixed("backbone.pretrained", target, given, mistakes)]
    return resolve_layers(layers, mistakes)


def _of_header(file: Path, header: "Header", given: Layer, mistakes: Mistakes) -> Layer:
    """Return the settings of the run that a file's header holds; of a file without, only those of its backbone."""
    layer = Layer(f"header of {file}", flatten(header.config, mistakes))
    if not missing_settings(layer.values):
        return complete(layer, layer.origin, mistakes)
    _demand(["data"], str(file), given, mistakes)
    return Layer(layer.origin, {"backbone.name": header.name})


def _refuse_others(target: str, given: Layer, used: tuple[str, ...], mistakes: Mistakes) -> None:
    """Add a mistake for each setting of the command line that the evaluation of this target would not read."""
    for section in dict.fromkeys(key.partition(".")[0] for key in given.values):
        if section not in used:
            mistakes.add(section, f"changes nothing in an evaluation of {target}, which takes {', '.join(used)}")


def _fixed(key: str, value: str, given: Layer, mistakes: Mistakes) -> Layer:
    """Return a setting that the target itself decides; another on the command line is a mistake."""
    if given.values.get(key) not in (None, value):
        mistakes.add(key.removesuffix(".name"), f"is {value} here, as the target is; leave it out")
    return Layer(value, {key: value})


def _check_name(target: str) -> None:
    try:
        plugins.find("backbones", target)
    except UserError as error:
        raise UserError(
            f"{target} is neither a run with a finished backbone, nor a weights file, nor a backbone ({error})"
        ) from error


def _demand(sections: list[str], target: str, given: Layer, mistakes: Mistakes) -> None:
    for section in sections:
        if f"{section}.name" not in given.values:
            mistakes.add(section, f"not specified by {target}; add {section}=NAME")
