"""The whole measurement: build the run once, time all contestants in turns, and return the result."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sslkit.config.resolve import Resolved
from sslkit.config.run import RunConfig
from sslkit.data.loaders.base import ImageBatch
from sslkit.errors import UserError
from sslkit.machine.allocator import freed_memory
from sslkit.machine.cards import driver_version
from sslkit.machine.devices import synchronize
from sslkit.machine.environment import device_name, environment, package_version
from sslkit.training.build import build
from sslkit.training.out_of_memory import is_out_of_memory, out_of_memory
from sslkit.training.setup import TrainingSetup
from sslkit_bench import peers
from sslkit_bench.clock import Contestant, Protocol, TurnTimes, paired, summary, take_turns
from sslkit_bench.contestants import Stages, Step, ViewsContestant, bounded, first_batch, first_micro_batch

Result = dict[str, Any]
Only = Literal["training", "views"]

RATIOS = {
    "step/bound": "images/s of whole steps as a share of the bound's",
    "step/lightly": "images/s over lightly's",
    "step/lightly-bfloat16": "images/s over lightly's in bf16",
    "step/views": "the views' share of a step's time",
    "views/kornia": "images/s of the views over kornia's",
    "views/torchvision": "images/s of the views over torchvision's",
}
"""Ratios of images/s between two contestants, paired by round -> meaning."""


@freed_memory(keep=True)
def bench(
    resolved: Resolved,
    protocol: Protocol,
    names: tuple[str, ...] = (*peers.TRAINING, *peers.VIEWS),
    only: Only | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Result:
    """Time the step of a run, its bound, its stages and its views in turns with peers.

    names: peers of `sslkit_bench.peers`. only: restrict the measurement to training or to views. Writes nothing but
    packed images in the cache, which runs use too. Returns the JSON-serialisable result: settings, protocol,
    contestants (seconds per step and images/s with every sample), stages (seconds), ratios (paired by round), absent
    (peers, with reasons), device, driver, environment. Raises UserError as the run would, also if memory runs out, and
    for devices > 1.
    """
    config = resolved.config
    if config.devices > 1:
        raise UserError(f"sslkit bench times one process, not devices={config.devices}; leave devices out")
    setup = build(config.model_copy(update=_to_tune(config, only)), log)
    image_batch = first_batch(setup)
    with tempfile.TemporaryDirectory(prefix="sslkit-bench-") as folder, ExitStack() as stack:
        wanted = [name for name in names if name in _peers_of(only)]
        foreign, absent = peers.find(wanted, setup, first_micro_batch(setup, image_batch), Path(folder))
        contestants = [*_own(setup, image_batch, only), *foreign]
        for contestant in contestants:
            stack.callback(contestant.close)
        try:
            times, failed = take_turns(contestants, protocol, partial(synchronize, setup.device), log)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise out_of_memory(setup, image_batch, error) from error
            raise
    return _described(resolved, setup, protocol, only) | _results(contestants, times) | {"absent": absent | failed}


def _to_tune(config: RunConfig, only: Only | None) -> dict[str, Any]:
    """Return the settings that make a short run tune for its highest speed, as a long one would."""
    if config.tune != "auto":
        return {}
    # Without training, fix the settings of the network, so that only the views are tuned.
    network = {"precision": "fp32", "channels_last": True, "compile": config.compile is not False}
    return {"tune": "always"} | (network if only == "views" else {})


def _peers_of(only: Only | None) -> tuple[str, ...]:
    return {None: (*peers.TRAINING, *peers.VIEWS), "training": peers.TRAINING, "views": peers.VIEWS}[only]


def _own(setup: TrainingSetup, image_batch: ImageBatch, only: Only | None) -> Iterator[Contestant]:
    if only != "views":
        yield Step("step", setup, f"{setup.loader.kind} loader: {setup.loader.why}")
        yield Step("bound", bounded(setup, image_batch), "the same network on precomputed views")
        yield Stages(setup)
    if only != "training":
        yield ViewsContestant(setup, first_micro_batch(setup, image_batch))


def _results(contestants: list[Contestant], times: dict[str, TurnTimes]) -> Result:
    raced = [contestant for contestant in contestants if contestant.name in times]
    rates = {c.name: [c.images / s for s in times[c.name].seconds] for c in raced}
    pairs = [(name, *name.split("/"), means) for name, means in RATIOS.items()]
    return {
        "contestants": {c.name: _figures(c, times[c.name], rates[c.name]) for c in raced if c.name != "stages"},
        "stages": next((_stages(c, times[c.name]) for c in raced if isinstance(c, Stages)), {}),
        "ratios": {
            name: {"means": means} | summary(paired(rates[above], rates[below]))
            for name, above, below, means in pairs
            if above in rates and below in rates
        },
    }


def _figures(contestant: Contestant, turn_times: TurnTimes, rates: list[float]) -> Result:
    return {
        "images_a_step": contestant.images,
        "steps_a_turn": turn_times.steps,
        "note": contestant.note,
        "seconds": summary(turn_times.seconds),
        "images_per_second": summary(rates),
    }


def _stages(stages: Stages, turn_times: TurnTimes) -> Result:
    notes = stages.notes()
    return {
        name: {
            "in_step": stages.in_step(name),
            "note": notes.get(name, ""),
            "steps_a_turn": turn_times.steps,
            "seconds": summary(turn_times.parts[name]),
        }
        for name in stages.measured()
    }


def _described(resolved: Resolved, setup: TrainingSetup, protocol: Protocol, only: Only | None) -> Result:
    config, size, machine = resolved.config, setup.stores.image_size, environment()
    return {
        "what": f"{config.method.name}, {config.backbone.name}, {size} px, batch {config.batch_size}",
        "method": config.method.name,
        "backbone": config.backbone.name,
        "image_size": size,
        "batch_size": config.batch_size,
        "execution": _execution(setup, only),
        "only": only,
        "device": setup.device.type,
        "device_name": device_name(setup.device),
        "driver": driver_version() if setup.device.type == "cuda" else None,
        "protocol": _protocol(protocol),
        "settings": resolved.values,
        "versions": {name: package_version(name) for name in (*peers.TRAINING, *peers.VIEWS)},
        "environment": machine,
    }


def _execution(setup: TrainingSetup, only: Only | None) -> str:
    """Describe the execution of the network, or of the views if only these are measured."""
    if only != "views":
        return str(setup.execution)
    return f"kernels={setup.config.kernels}" + (", compiled" if setup.execution.compiled_views else "")


def _protocol(protocol: Protocol) -> Result:
    return {
        "warmup": protocol.warmup,
        "repeats": protocol.repeats,
        "seconds": protocol.seconds,
        "words": "one process; rounds in which each contestant has one turn, every second round in reverse order; a "
        "turn is one untimed step followed by timed steps between two synchronisations; a sample is their mean; ratios "
        "are within a round",
    }


def file_stem(result: Result) -> str:
    """Return the stem of file names for a result: cpu-simclr-shufflenetv2-96."""
    backbone = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in result["backbone"])
    return f"{result['device']}-{result['method']}-{backbone}-{result['image_size']}"
