"""Start several processes with torchrun's launcher, and join their process group of torch.distributed."""

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
"""Environment variable of processes that `start` launched: the launching process reports the outcome, not they."""
LEFT_ALONE = 3
"""Exit status of a process that ends because another process of the group has died."""
TIMEOUT = timedelta(days=1)
"""Timeout of collective operations: the other processes wait while the first one evaluates, and the launcher, not a
timeout, detects dead processes."""


def needed(devices: int) -> bool:
    """Return True if this process must launch others instead of training itself."""
    return devices > 1 and not _launched()


def start(run: "Run", devices: int) -> "Run":
    """Train `run` with `devices` processes on this machine, from its newest checkpoint; return when they have ended.

    Raises UserError if a process died, or ended with a user error that it has already printed; Interrupted after
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
            raise _failure(run, failed, devices) from None
        except SignalException as signalled:
            raise Interrupted(int(signalled.sigval), within_step=False) from None
    return run


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the process group inside the block if this process was launched by torchrun; otherwise do nothing."""
    if not _launched() or dist.is_initialized():
        yield
        return
    # CPU tensors, such as small numbers, are exchanged by gloo even if gradients are exchanged by NCCL.
    on_gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)
    try:
        yield
    except UserError:
        if not distributed.is_main():
            # Most likely the first process is about to report the same mistake, after which the launcher ends this one.
            time.sleep(10)
        raise
    except RuntimeError as error:
        if not _lost_connection(error):
            raise
        # The launcher reports why the other process ended.
        raise SystemExit(LEFT_ALONE) from error
    finally:
        dist.destroy_process_group()


def speaks() -> bool:
    """Return True if this process reports the outcome of the run to the user."""
    return OURS not in os.environ and int(os.environ.get("RANK", 0)) == 0


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def _lost_connection(error: RuntimeError) -> bool:
    messages = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
    return isinstance(error, dist.DistNetworkError | dist.DistBackendError) or any(m in str(error) for m in messages)


def _failure(run: "Run", failed: Any, devices: int) -> UserError:
    """Return a UserError that explains what ended the first process to fail; the launcher stopped the others."""
    rank, first = min(failed.failures.items(), key=lambda item: item[1].timestamp)
    if first.exitcode == 2:
        return UserError("the run ended with the error above")
    how = f"was killed by {first.signal_name()}" if first.exitcode < 0 else f"failed with status {first.exitcode}"
    saved = run.checkpoints
    remedy = f"resume with: {run.resume_command}" if saved else "there is no checkpoint yet"
    return UserError(
        f"process {rank} of {devices} {how}, and the others were stopped; last checkpoint: "
        f"{saved[-1] if saved else 'none'}; {remedy}"
    )


def _quieten_launcher() -> None:
    """Silence torchrun's long log of a failure, which is reported here in one sentence."""
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
