"""Start several processes with torchrun's launcher, and join their process group of torch.distributed."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from sslkit.errors import UserError
from sslkit.machine import distributed
from sslkit.machine.environment import core_count
from sslkit.machine.signals import Interrupted, heeded, stopped_by
from sslkit.runs.display import Display
from sslkit.training import pulse
from sslkit.training.pulse import LEFT_ALONE
from sslkit.training.watch import watched

if TYPE_CHECKING:
    from sslkit.runs.run import Run

OURS = "SSLKIT_LAUNCHED"
"""Environment variable of processes that `start` launched: the launching process reports the outcome, not they."""
TIMEOUT = timedelta(days=1)
"""Timeout of collective operations: the other processes wait while the first one evaluates, and the launcher, not a
timeout, detects dead processes."""


def needed(devices: int) -> bool:
    """Return True if this process must launch others instead of training itself."""
    return devices > 1 and not _launched()


def start(run: "Run", devices: int, words: Iterable[str] = ()) -> "Run":
    """Train `run` with `devices` processes on this machine, from its newest checkpoint; return when they have ended.

    words: of `sslkit resume`.
    Raises UserError if a process died, or ended with a user error that it has already printed; Interrupted if it, or
    any of them, was asked to stop.
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
    variables = {
        OURS: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "TORCHELASTIC_SIGNALS_TO_HANDLE": ",".join(s.name for s in heeded()),
    }
    log = Display().log
    with watched(run.config.stall_timeout, log) as watch, _environment({**variables, pulse.FOLDER: str(watch.folder)}):
        try:
            elastic_launch(settings, sys.executable)(
                "-m", "sslkit", "resume", str(run.path), *words, "--devices", str(devices)
            )
        except ChildFailedError as failed:
            raise _failure(run, failed, devices, watch.ended) from None
        except SignalException as signalled:
            raise Interrupted(int(signalled.sigval)) from None
    return run


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the process group inside the block if this process was launched by torchrun; otherwise do nothing."""
    if not _launched() or dist.is_initialized():
        yield
        return
    pulse.start(int(os.environ["RANK"]), int(os.environ.get(OURS, os.getppid())))
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
        pulse.leave()
        dist.destroy_process_group()


def speaks() -> bool:
    """Return True if this process reports the outcome of the run to the user."""
    return OURS not in os.environ and int(os.environ.get("RANK", 0)) == 0


def _launched() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def _lost_connection(error: RuntimeError) -> bool:
    messages = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
    return isinstance(error, dist.DistNetworkError | dist.DistBackendError) or any(m in str(error) for m in messages)


def _failure(run: "Run", failed: Any, devices: int, ended: str | None) -> UserError | Interrupted:
    """Return Interrupted if the first process to end was asked to stop, else a UserError that explains what ended it.

    The launcher has stopped the others.
    """
    rank, first = min(failed.failures.items(), key=lambda item: item[1].timestamp)
    if first.exitcode == 2:
        return UserError("the run ended with the error above")
    if signum := stopped_by(first.exitcode):
        return Interrupted(signum)
    how = ended or f"process {rank} of {devices} " + _how(first)
    saved = run.checkpoints
    remedy = f"resume with: {run.resume_command}" if saved else "there is no checkpoint yet"
    return UserError(f"{how}, and the others were stopped; last checkpoint: {saved[-1] if saved else 'none'}; {remedy}")


def _how(failure: Any) -> str:
    killed = failure.exitcode < 0
    return f"was killed by {failure.signal_name()}" if killed else f"failed with status {failure.exitcode}"


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
