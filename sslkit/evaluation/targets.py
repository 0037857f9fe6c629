"""Open the target of `sslkit evaluate`: a run, a weights file, or the name of a backbone."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sslkit import plugins
from sslkit.config.base import Choice
from sslkit.config.layers import Layer, Mistakes, flatten, parse_words
from sslkit.config.recipes import read_recipe
from sslkit.config.resolve import Resolved, resolve_layers
from sslkit.config.run import RunConfig
from sslkit.data import Stores, cache_dir, open_stores
from sslkit.errors import UserError
from sslkit.evaluation.evaluate import evaluate, head_name, possible, untrained, without_their_labels
from sslkit.nn.modes import own_random
from sslkit.runs.records import known_floors
from sslkit.runs.run import Run

if TYPE_CHECKING:
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
    folder: Path | None
    """Folder for pictures and records: the run directory, or the setting `out`."""

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
        from safetensors.torch import load_file

        from sslkit.methods.build import build_method

        folders = [checkpoint] if checkpoint else self.run.checkpoints[-1:] if self.run else []
        if not folders:
            return None
        method = build_method(self.config, self.stores)
        name = head_name(method)
        if name is None:
            return None
        saved = load_file(folders[0] / "model.safetensors")
        head: nn.Module = getattr(method, name)
        head.load_state_dict({k.removeprefix(f"{name}."): v for k, v in saved.items() if k.startswith(f"{name}.")})
        return head


def evaluate_saved(target: str | Path, words: Iterable[str], display: "Display") -> list[dict[str, Any]]:
    """Evaluate a target as `sslkit evaluate RUN|FILE|NAME key=value...` does, and return the records.

    Records are appended to the evaluations.jsonl of a run, and pictures written to its figures; for a file or a name,
    to those of `out`, if given. NAME is a plain backbone, with random weights unless `backbone.pretrained` is set.
    """
    opened = open_target(target, words, display)
    when = moment(opened.run) if opened.run else {}
    records = []
    for found in opened.records(opened.evaluators):
        record = {**when, **found}
        if opened.folder:
            opened.folder.mkdir(parents=True, exist_ok=True)
            Run(opened.folder, opened.config, {}).log_evaluation(record)
        display.evaluation(record)
        records.append(record)
    return records


def moment(run: Run) -> dict[str, Any]:
    """Return the epoch and step of the run's backbone file, as entries of a record."""
    checkpoints = run.checkpoints
    if not checkpoints:
        return {"epoch": run.config.epochs, "step": run.metrics[-1]["step"] if run.metrics else 0, "during_run": False}
    state = json.loads((checkpoints[-1] / "state.json").read_text(encoding="utf-8"))
    epoch = state["epoch"]
    return {"epoch": int(epoch) if epoch == int(epoch) else epoch, "step": state["step"], "during_run": False}


def open_target(target: str | Path, words: Iterable[str], display: "Display") -> Target:
    """Open the settings, images and network of a run, a weights file or the name of a backbone.

    Raises UserError for anything else, and for mistakes in the settings, all of which it lists.
    """
    from sslkit.machine.devices import pick_device

    path = Path(target)
    run = Run.open(path) if path.is_dir() else None
    file = run.backbone_file if run else path if path.is_file() else None
    if run and not run.backbone_file.is_file():
        raise UserError(f"{path} is neither a run with a finished backbone nor a weights file")
    resolved = _settings(file, run, str(target), words)
    config = resolved.config
    stores = open_stores(config.data, config.eval_data, config.seed, log=display.log)
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

    if file and _is_ours(file):
        loaded = load_backbone(file)
        return loaded.net, loaded.image_size
    with own_random(config.seed):
        return create_backbone(config.backbone, image_size=image_size), image_size


def _settings(file: Path | None, run: Run | None, target: str, words: Iterable[str]) -> Resolved:
    """Resolve the settings of the run, the file's header or the name, together with the command line."""
    mistakes = Mistakes()
    layers = []
    ours = file is not None and _is_ours(file)
    if run:
        layers.append(read_recipe(run.path / "config.yaml", mistakes))
    elif file and ours:
        layers.append(Layer(f"header of {file}", flatten(json.loads(_header(file)["config"]), mistakes)))
    layers.append(Layer("command line", parse_words(words, mistakes)))
    given = layers[-1].values
    if file is None:
        _check_name(target)
        _demand(["data"], target, given, mistakes)
        layers.append(Layer(target, {"backbone.name": target}))
    elif not ours:
        _demand(["backbone", "data"], str(file), given, mistakes)
        layers.append(Layer(str(file), {"backbone.pretrained": str(file)}))
    return resolve_layers(layers, mistakes)


def _check_name(target: str) -> None:
    try:
        plugins.find("backbones", target)
    except UserError as error:
        raise UserError(
            f"{target} is neither a run with a finished backbone, nor a weights file, nor a backbone ({error})"
        ) from error


def _demand(sections: list[str], target: str, given: dict[str, Any], mistakes: Mistakes) -> None:
    for section in sections:
        if f"{section}.name" not in given:
            mistakes.add(section, f"not specified by {target}; add {section}=NAME")


def _is_ours(file: Path) -> bool:
    return _header(file).get("format") == "sslkit"


def _header(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is not a safetensors file ({error})") from error
