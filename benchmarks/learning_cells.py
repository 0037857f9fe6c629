"""The cells of `learning.py`: what one of them trains, for how long, and how it is measured in a process of its own.

sslkit is trained by its users' own command, `sslkit run method=... backbone=... data=FOLDER`, with the settings that
come with the method; lightly by its own example (`lightly_example.py`). Floors are cells that train nothing.
"""

import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightly_example
import torch
from peer_contest import judge

OWN = "own"
"""Stem that the backbone takes by itself for the size of the images."""
RANDOM, PIXELS = "random-init", "raw-pixels"
"""Contestants that train nothing: the floors."""

Training = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One measurement: who trains which network with which method, for how long, with which seed."""

    contestant: str
    method: str
    network: str
    stem: str
    """imagenet, small, or own."""
    seconds: float
    """Limit of the training time; 0 for floors."""
    seed: int
    words: tuple[str, ...] = ()
    """Further settings of `sslkit run`; (): the settings that the method comes with."""

    @property
    def key(self) -> str:
        parts = [self.contestant, self.method, self.network, f"{self.stem}-stem", f"{self.seconds:g}s"]
        return " ".join([*parts, f"seed{self.seed}", *self.words])

    def run_words(self, data: str | Path) -> list[str]:
        """Return the settings of `sslkit run` without time, seed and place."""
        stem = [] if self.stem == OWN else [f"backbone.stem={self.stem}"]
        return [f"method={self.method}", f"backbone={self.network}", f"data={data}", *stem, *self.words]


def floors_of(cell: Cell) -> list[Cell]:
    """Return the cells that train nothing and are judged beside this one."""
    of_network = tuple(word for word in cell.words if word.startswith(("backbone.", "data.")))
    return [
        Cell(RANDOM, "none", trained_network(cell.method, cell.network), cell.stem, 0, cell.seed, of_network),
        Cell(PIXELS, "none", "none", "no", 0, 0),
    ]


def trained_network(method: str, network: str) -> str:
    """Return the name of the network that a method trains: a compound for some."""
    from sslkit import plugins
    from sslkit.config.base import Choice

    name: str = plugins.find("methods", method).trained_backbone(Choice(name=network)).name
    return name


def measure(cell: Cell, folder: Path, batch: int) -> dict[str, Any]:
    """Train and judge a cell in this process; return what is recorded of it, without its environment.

    folder: train/ and test/. batch: of lightly's loader.
    """
    from sslkit.machine.devices import pick_device

    device = pick_device("auto")
    began = time.perf_counter()
    if cell.contestant == "sslkit":
        backbone, training = _train_sslkit(cell, folder)
    else:
        backbone, training = _initial(cell, folder), {}
        if cell.contestant in lightly_example.OPTIMIZERS:
            training = lightly_example.train(
                cell.contestant, cell.method, backbone, folder, cell.seconds, device, batch
            ) | {"command": "benchmarks/lightly_example.py"}
    whole = time.perf_counter() - began
    return training | {"seconds_with_start": whole} | judge(backbone, folder, cell.seed, device)


def _initial(cell: Cell, folder: Path) -> Any:
    """Return the untrained network, or raw pixels; torch stays seeded for what follows."""
    from sslkit.backbones import create_backbone
    from sslkit.config.resolve import resolve
    from sslkit.data import open_stores
    from sslkit.evaluation.floors import RawPixels

    if cell.contestant == PIXELS:
        return RawPixels()
    config = resolve([*cell.run_words(folder)[1:], "evaluators=[]", "batch_size=2"]).config
    size = open_stores(config.data, None, 0, log=lambda text: None).image_size
    torch.manual_seed(cell.seed)
    return create_backbone(config.backbone, image_size=size)


def _train_sslkit(cell: Cell, folder: Path) -> tuple[Any, Training]:
    """Train by `sslkit run` in a process of its own, as users do; return (backbone, timing).

    Of the run's own evaluations, which cost time but change no weight, none are made: the judge's follow.
    """
    from sslkit.runs.run import Run

    words = [*cell.run_words(folder), f"seed={cell.seed}", f"budget={cell.seconds:g}", "evaluators=[]", "report=false"]
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "sslkit", "run", *words, f"out={place}/run"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        run = Run.open(f"{place}/run")
        return run.backbone(), _timing(run) | {"command": _without_places(words, folder)}


def _timing(run: Any) -> Training:
    """Return the training time, as metrics.jsonl has it, what was done in it, and the settings that were taken."""
    config, last = run.config, run.metrics[-1]
    images = last["step"] * config.batch_size * config.accumulate
    return {
        "seconds_trained": last["seconds"],
        "steps": last["step"],
        "epochs": last["epoch"],
        "images_per_second": images / last["seconds"],
        "settings": {
            "method": config.method.flat(),
            "augment": config.augment.flat(),
            "batch_size": config.batch_size,
            "optimizer": config.optimizer.model_dump(mode="json"),
            "peak_lr": run.derived["peak_lr"],
            "stem": run.derived["stem"],
            "execution": run.derived["execution"],
        },
    }


def _without_places(words: list[str], folder: Path) -> str:
    return shlex.join(["sslkit", "run", *("data=FOLDER" if word == f"data={folder}" else word for word in words)])
