"""The executions of a network that are worth timing on a device."""

from dataclasses import replace

import torch

from sslkit.config.run import RunConfig
from sslkit.machine import distributed
from sslkit.machine.precision import has_bf16
from sslkit.methods.base import Method
from sslkit.training.execution import Execution, depthwise_convolutions, usual


def eager_candidates(config: RunConfig, device: torch.device, method: Method) -> list[Execution]:
    """Return the default execution, and those that differ from it in one setting that is left open; all uncompiled.

    If the network has depthwise convolutions, each lower precision is also tried with these in fp32.
    """
    config = config.model_copy(update={"compile": False})
    candidates = [usual(config, device)]
    if config.precision == "auto" and has_bf16(device):
        other = "fp32" if candidates[0].precision == "bf16" else "bf16"
        candidates.append(usual(config.model_copy(update={"precision": other}), device))
    if config.depthwise_fp32 == "auto" and any(depthwise_convolutions(method)):
        candidates += [
            replace(candidate, depthwise_fp32=True) for candidate in candidates if candidate.precision != "fp32"
        ]
    if config.channels_last == "auto":
        candidates.append(replace(candidates[0], channels_last=False))
    return candidates


def compiled_candidates(config: RunConfig, device: torch.device, best: Execution) -> list[Execution]:
    """Return compiled versions of the best uncompiled candidate, if the settings leave compilation open.

    None with several GPUs: trials of a single process lack synchronised batch norm, which compiles differently and
    cannot be replayed as a CUDA graph.
    """
    if config.compile != "auto" or (device.type == "cuda" and distributed.world() > 1):
        return []
    modes = ["default", "graphs"] if device.type == "cuda" else ["default"]
    return [replace(best, compile=mode) for mode in modes]
