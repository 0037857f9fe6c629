"""Start several processes, and join them: torchrun's launcher, and the process group of torch.distributed."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from sslkit.errors import UserError
from sslkit.machine import distributed
from sslkit.machine.environment import core_count
from sslkit.training.stopping import Interrupted

if TYPE_CHECKING:
    from sslkit.runs.run import Run

OURS = "SSLKIT_LAUNCHED"
"""Set for processes that `start` began: the one that began them tells how it ended."""
LEFT_ALONE = 3
"""Exit status of a process whose companions are gone."""
PATIENCE = timedelta(days=1)
"""The others wait while the first process evaluates; that one of them is dead, the launcher notices, not a clock."""


def needed(devices: int) -> bool:
    """Whether this process must start others, rather than train itself."""
    return devices > 1 and not _launched()


def start(run: "Run", devices: int) -> "Run":
    """Train `run` with `devices` processes of this machine, from its newest checkpoint; returns when they have ended.

    Raises UserError where a process died, or ended with a mistake that it has named itself; Interrupted after
    Ctrl-C and SIGTERM.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _quieten_launcher()
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"sslkit-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.1,
    )
    threads = str(max(1, core_count() // devices))
    with _environment({OURS: "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}):
        try:
            elastic_launch(settings, sys.executable)("-m", "sslkit", "resume", str(run.path), "--devices", str(devices))
        except ChildFailedError as failed:
            raise _why(run, failed, devices) from None
        except SignalException as signalled:
            raise Interrupted(int(signalled.sigval), within_step=False) from None
    return run


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Under torchrun, be one of its processes; otherwise be alone."""
    if not _launched() or dist.is_initialized():
        yield
        return
    # Small numbers go over the host even where the gradients go from GPU to GPU.
    on_gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=PATIENCE)
    try:
        yield
    except UserError:
        if not distributed.is_main():
            # Most likely the first process names the same mistake, and its end is this one's too.
            time.sleep(10)
        raise
    except RuntimeError as error:
        if not _others_are_gone(error):
            raise
        # What ended the other is told by whoever started both.
        raise SystemExit(LEFT_ALONE) from error
    finally:
        dist.destroy_process_group()


def speaks() -> bool:
    """Whether this process tells the user how the run ended."""
    return OURS not in os.environ and int(os.environ.get("RANK", 0)) == 0


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def _others_are_gone(error: RuntimeError) -> bool:
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
    return isinstance(error, dist.DistNetworkError | dist.DistBackendError) or any(s in str(error) for s in signs)


def _why(run: "Run", failed: Any, devices: int) -> UserError:
    """In words what ended the processes. The first to fail is the cause; the others were stopped."""
    rank, first = min(failed.failures.items(), key=lambda item: item[1].timestamp)
    if first.exitcode == 2:
        return UserError("the run ended with the mistake named above")
    how = f"was killed by {first.signal_name()}" if first.exitcode < 0 else f"failed with status {first.exitcode}"
    saved = run.checkpoints
    mend = f"go on with: sslkit resume {run.path}" if saved else "there is no checkpoint yet"
    return UserError(
        f"process {rank} of {devices} {how}, and the others were stopped; last checkpoint: "
        f"{saved[-1] if saved else 'none'}; {mend}"
    )


def _quieten_launcher() -> None:
    """torchrun logs a page of its own about a failure that is told in one sentence here."""
    import logging

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
