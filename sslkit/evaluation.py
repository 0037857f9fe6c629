"""Run evaluators on a backbone: during a run, or later on any run or weights file."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sslkit import plugins
from sslkit.config import Choice
from sslkit.errors import UserError
from sslkit.evaluators import Subject
from sslkit.recipes import read_recipe
from sslkit.resolve import Resolved, resolve_layers
from sslkit.settings import Layer, Mistakes, flatten, parse_words

if TYPE_CHECKING:
    from sslkit.data import Stores
    from sslkit.progress import Display

ABOUT = frozenset({"epoch", "step", "n_train", "n_test", "seed", "seconds", "during_run"})
"""Numbers of a record that describe it and are no result."""


def evaluate(
    backbone: nn.Module, evaluators: Iterable[Choice], stores: "Stores", device: torch.device, seed: int
) -> Iterator[dict[str, Any]]:
    """One record an evaluator, as evaluations.jsonl keeps it. Features are extracted once and shared."""
    if stores.train is None or stores.test is None:
        raise UserError("there are no labels to evaluate with; name labelled images with eval_data=")
    subject = Subject(
        backbone,
        stores.train,
        stores.test,
        image_size=stores.image_size,
        mean=stores.mean,
        std=stores.std,
        device=device,
        seed=seed,
    )
    for choice in evaluators:
        evaluator = plugins.find("evaluators", choice.name)(choice.options)
        began = time.perf_counter()
        metrics = evaluator(subject)
        yield {
            "evaluator": choice.name,
            "protocol": evaluator.protocol,
            "data": stores.protocol,
            "split": "test",
            "n_train": len(stores.train),
            "n_test": len(stores.test),
            "seed": seed,
            "seconds": round(time.perf_counter() - began, 3),
            **metrics,
        }


def measured(record: dict[str, Any]) -> dict[str, float]:
    """What an evaluator found, without what is said about it: {"top1": 0.83, "top5": 0.99}."""
    return {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k not in ABOUT}


def as_metrics(record: dict[str, Any]) -> dict[str, float]:
    """A record as plain floats for trackers: {"knn/top1": 0.83}."""
    return {f"{record['evaluator']}/{k}": v for k, v in measured(record).items()}


def evaluate_saved(path: Path, words: Iterable[str], display: "Display") -> list[dict[str, Any]]:
    """`sslkit evaluate RUN|FILE key=value...`: the records; a run also keeps them in its evaluations.jsonl."""
    from sslkit.backbones import create_backbone, load_backbone
    from sslkit.build import pick_device
    from sslkit.data import open_stores
    from sslkit.runs import Run

    run = Run.open(path) if path.is_dir() else None
    file = run.backbone_file if run else path
    if not file.is_file():
        raise UserError(f"{path} is neither a run with a finished backbone nor a weights file")
    resolved = _settings(file, run, words)
    config = resolved.config
    stores = open_stores(config.data, config.eval_data, config.seed, say=display.say)
    if _is_ours(file):
        backbone = load_backbone(file)
    else:
        backbone = create_backbone(config.backbone, image_size=stores.image_size)
    device = pick_device(config.device)
    backbone.to(device)
    if config.channels_last:
        backbone.to(memory_format=torch.channels_last)
    records = []
    for record in evaluate(backbone, config.evaluators, stores, device, config.seed):
        if run:
            record = {"epoch": config.epochs, "step": _last_step(run), "during_run": False} | record
            run.log_evaluation(record)
        display.evaluation(record)
        records.append(record)
    return records


def _settings(file: Path, run: Any, words: Iterable[str]) -> Resolved:
    """What the run or the file's header says, under what the command line says."""
    mistakes = Mistakes()
    layers = []
    if run:
        layers.append(read_recipe(run.path / "config.yaml", mistakes))
    elif _is_ours(file):
        layers.append(Layer(f"header of {file}", flatten(json.loads(_header(file)["config"]), mistakes)))
    layers.append(Layer("command line", parse_words(words, mistakes)))
    if not _is_ours(file):
        given = layers[-1].values
        for key in ("backbone.name", "data.name"):
            if key not in given:
                mistakes.add(key.removesuffix(".name"), f"{file} does not say; add {key.removesuffix('.name')}=NAME")
        layers.append(Layer(str(file), {"backbone.pretrained": str(file)}))
    return resolve_layers(layers, mistakes, new=False)


def _is_ours(file: Path) -> bool:
    return _header(file).get("format") == "sslkit"


def _header(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is not a safetensors file ({error})") from error


def _last_step(run: Any) -> int:
    metrics = run.metrics
    return metrics[-1]["step"] if metrics else 0
