"""What earlier runs found out about the executions of a network, and where that is kept."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sslkit.machine import atomic, distributed
from sslkit.machine.cache import cache_dir, digest
from sslkit.machine.environment import device_name, package_version
from sslkit.training.execution import Execution

if TYPE_CHECKING:
    from sslkit.training.setup import TrainingSetup


MARGIN = 0.97
"""A candidate must take less than this share of the usual one's time: timings of a few steps are noisy."""


@dataclass(frozen=True)
class Timing:
    """What was found out about one direction."""

    execution: Execution
    first: float = 0.0
    """Seconds of the first step, compiling included."""
    step: float = 0.0
    """Seconds of a further step, the shortest of a few: what disturbs one, as memory taken anew does, only adds."""
    loss: float = 0.0
    """Loss of the first step, of the same weights and views for every candidate timed with it."""
    expected: float = 0.0
    """That of the first candidate timed with it: a later run, of another seed, may have timed the others."""
    error: str = ""
    """Why it cannot be used here."""
    passing: bool = False
    """Whether that may be otherwise another day: memory ran out, which others may have held."""

    def total(self, steps: int) -> float:
        """Expected seconds of a run of `steps` steps."""
        return self.first + self.step * (steps - 1)


@dataclass(frozen=True)
class TuningRecord:
    """What earlier runs found out."""

    timings: dict[Execution, Timing] = field(default_factory=dict)
    """Of candidates with plain views, which cost them all the same."""
    compiled_views: bool | None = None
    """Whether compiled views are as good as plain ones, and faster; None: not known."""


def images_per_second(setup: "TrainingSetup") -> float | None:
    """What the steps of this process take in their chosen candidate, where that was timed, now or in an earlier run."""
    timings = recalled(setup).timings
    candidate = replace(setup.execution, compiled_views=False)
    # Where the settings ask for compiled networks, only uncompiled ones were timed.
    timing = timings.get(candidate) or timings.get(replace(candidate, compile="no"))
    return setup.images_per_step / distributed.world() / timing.step if timing and timing.step else None


def recalled(setup: "TrainingSetup") -> TuningRecord:
    """What the first process remembers."""
    result: TuningRecord = distributed.from_main(recall(remembered_in(setup)) if distributed.is_main() else None)
    return result


def remembered_in(setup: "TrainingSetup") -> Path:
    return cache_dir() / "tune" / f"{digest(key_of(setup))}.json"


def key_of(setup: "TrainingSetup") -> dict[str, Any]:
    """Everything that the time of a step depends on."""
    config = setup.config
    return {
        "device": device_name(setup.device),
        "instructions": torch.backends.cpu.get_cpu_capability() if setup.device.type == "cpu" else None,
        "processes": distributed.world(),
        "torch": torch.__version__,
        "sslkit": package_version("sslkit"),
        "method": config.method.flat(),
        "backbone": config.backbone.flat(),
        "augment": config.augment.flat(),
        "kernels": config.kernels,
        "optimizer": config.optimizer.name,
        "image_size": setup.stores.image_size,
        "batch_size": config.batch_size,
        "micro_batch": config.micro_batch,
        "accumulate": config.accumulate,
        "deterministic": config.deterministic,
    }


def recall(file: Path) -> TuningRecord:
    """What is known from earlier runs; nothing from a file that cannot be read, for it can be found out again."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        timings = [Timing(**record | {"execution": Execution(**record["execution"])}) for record in told["timings"]]
        return TuningRecord({timing.execution: timing for timing in timings}, told["compiled_views"])
    except (OSError, ValueError, KeyError, TypeError):
        return TuningRecord()


def remember(setup: "TrainingSetup", known: TuningRecord, log: Callable[[str], None]) -> None:
    lasting = [asdict(timing) for timing in known.timings.values() if not timing.passing]
    told = {"about": key_of(setup), "compiled_views": known.compiled_views, "timings": lasting}
    try:
        atomic.write_json(remembered_in(setup), told)
    except OSError as error:
        log(f"what was timed cannot be kept for other runs: {error}")
