"""Timings of the executions of a network, cached on disk for later runs."""

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
"""Share of the default execution's time below which a candidate counts as faster: timings of few steps are noisy."""


@dataclass(frozen=True)
class Timing:
    """Measurements of one execution."""

    execution: Execution
    first: float = 0.0
    """Seconds of the first step, compilation included."""
    step: float = 0.0
    """Seconds of a later step: the minimum of a few, because disturbances such as memory allocation only add time."""
    loss: float = 0.0
    """Loss of the first step, on the same weights and views for all candidates that were timed together."""
    expected: float = 0.0
    """Loss of the first candidate that was timed together with this one; other runs may have used other seeds."""
    error: str = ""
    """Reason why this execution cannot be used on this machine."""
    passing: bool = False
    """True if the error may be temporary: memory ran out, which other processes may have used."""

    def total(self, steps: int) -> float:
        """Return the expected seconds of a run of `steps` steps."""
        return self.first + self.step * (steps - 1)


@dataclass(frozen=True)
class TuningRecord:
    """Measurements of earlier runs."""

    timings: dict[Execution, Timing] = field(default_factory=dict)
    """Timings of candidates with uncompiled views, which take the same time for all of them."""
    compiled_views: bool | None = None
    """True if compiled views are equal to uncompiled ones and faster, False if not; None: unknown."""


def images_per_second(setup: "TrainingSetup") -> float | None:
    """Return images/s of this process's steps in the chosen execution, or None if it was never timed."""
    timings = recalled(setup).timings
    execution = replace(setup.execution, compiled_views=False)
    # With compile=true only uncompiled networks were timed.
    timing = timings.get(execution) or timings.get(replace(execution, compile="no"))
    return setup.images_per_step / distributed.world() / timing.step if timing and timing.step else None


def recalled(setup: "TrainingSetup") -> TuningRecord:
    """Return the record that the first process has cached, on all processes."""
    result: TuningRecord = distributed.from_main(recall(remembered_in(setup)) if distributed.is_main() else None)
    return result


def remembered_in(setup: "TrainingSetup") -> Path:
    """Return the path of the cache file."""
    return cache_dir() / "tune" / f"{digest(key_of(setup))}.json"


def key_of(setup: "TrainingSetup") -> dict[str, Any]:
    """Return the key of the cache: everything that the time of a step depends on."""
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
    """Read the record of earlier runs; empty if the file cannot be read, because it can be measured again."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        timings = [Timing(**record | {"execution": Execution(**record["execution"])}) for record in saved["timings"]]
        return TuningRecord({timing.execution: timing for timing in timings}, saved["compiled_views"])
    except (OSError, ValueError, KeyError, TypeError):
        return TuningRecord()


def remember(setup: "TrainingSetup", known: TuningRecord, log: Callable[[str], None]) -> None:
    """Write the record for later runs, without temporary errors."""
    lasting = [asdict(timing) for timing in known.timings.values() if not timing.passing]
    saved = {"about": key_of(setup), "compiled_views": known.compiled_views, "timings": lasting}
    try:
        atomic.write_json(remembered_in(setup), saved)
    except OSError as error:
        log(f"timings cannot be saved for later runs: {error}")
