"""Small runs, and the candidates to execute them, for the tests of `execution` and `tune`."""

from itertools import islice

import torch

from sslkit.config.resolve import resolve
from sslkit.config.run import RunConfig
from sslkit.training.build import build
from sslkit.training.execution import Execution
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import train_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = {
    "method": "simclr", "backbone": "shufflenetv2", "backbone.stem": "imagenet",
    "data": "shapes", "data.n_train": 32, "data.n_test": 8, "data.image_size": 32,
    "batch_size": 8, "epochs": 3, "device": "cpu", "evaluators": "[]", "report": "false",
}  # fmt: skip
"""Of a network whose stem shrinks images of 32 px at once: a step has a tenth of the work, and the same parts."""
USUAL = Execution()
FIRST = Execution(channels_last=False)
HALF = Execution("bf16")
MIXED = Execution("bf16", depthwise_fp32=True)


def config_of(*words: str) -> RunConfig:
    given = SETTINGS | dict(word.split("=") for word in words)
    return resolve([f"{key}={value}" for key, value in given.items()]).config


def built(*words: str, log=print) -> TrainingSetup:
    return build(config_of(*words), log)


def stepped(setup: TrainingSetup, count: int = 1) -> list[float]:
    """Losses of the first steps."""
    batches = setup.loader.epoch(0)
    return [float(train_step(setup, list(islice(batches, 1)), step)["loss"]) for step in range(count)]
