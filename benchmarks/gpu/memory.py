"""The largest batch that fits a card of 8 GB, and what it takes at its peak."""

import torch

from benchmarks.gpu.settings import Result, Settings
from sslkit.config.resolve import resolve
from sslkit.errors import UserError
from sslkit.machine.devices import pick_device, release
from sslkit.training.plan import CARD_GIB, CONTEXT_GIB, Plan, plan

NETWORKS = ("resnet18", "mobilenetv3_large", "shufflenetv2")
METHODS = ("simclr", "byol")
SIZE, FEWEST, MOST = 96, 128, 2048
"""Pixels; images per batch of the first and of the last trial, which double in between."""
GIB = 2**30


def items(settings: Settings) -> list[str]:
    combinations = [f"{method} {network}" for method in METHODS for network in NETWORKS]
    return settings.sized(combinations, ["simclr shufflenetv2"])


def largest_batch(item: str, settings: Settings) -> Result:
    """Double the batch until it no longer fits; a larger card is limited to what one of 8 GB offers."""
    method, network = item.split()
    device = pick_device(settings.device)
    if settings.on_card:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (CARD_GIB - CONTEXT_GIB) * GIB / total), device)
    fits: dict[int, Result] = {}
    size, beyond = settings.sized(FEWEST, 8), "the largest size tried"
    while size <= settings.sized(MOST, 16):
        release(device)
        try:
            found = tried(method, network, size, settings)
        except UserError as error:
            beyond = str(error)
            break
        if not found.fits_8gb:
            beyond = f"{size} needs {found.memory_gib:.2f} GiB"
            break
        fits[size] = figures(found, device)
        size *= 2
    return {"limit_gib": CARD_GIB, "batch_size": max(fits, default=None), "fits": fits, "beyond": beyond,
            "passed": bool(fits)}  # fmt: skip


def tried(method: str, network: str, batch_size: int, settings: Settings) -> Plan:
    """Take a few steps with this batch. Raises UserError if memory runs out."""
    words = [f"method={method}", f"backbone={network}", f"batch_size={batch_size}", f"device={settings.device}"]
    words += ["data=shapes", f"data.n_train={settings.sized(MOST, 16)}", "data.n_test=8"]
    words += [f"data.image_size={settings.sized(SIZE, 32)}", "tune=off", "epochs=1", "evaluators=[]"]
    return plan(resolve([*words, *settings.sized([], ["backbone.stem=imagenet"])]))


def figures(found: Plan, device: torch.device) -> Result:
    """Return memory and speed of a trial. On a CPU the memory is an estimate of what a card would need."""
    measured = {
        "peak_bytes": torch.cuda.max_memory_allocated(device),
        "peak_bytes_reserved": torch.cuda.max_memory_reserved(device),
    }
    basis = {"memory_gib": round(found.memory_gib, 3), "basis": found.basis["memory"]}
    return basis | {"images_per_second": found.images_per_second} | (measured if device.type == "cuda" else {})
