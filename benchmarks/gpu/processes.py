"""Two processes with half of a batch each, against one with all of it: gradients, SyncBN, the state after a step."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sslkit_bench.contestants import StoredViews
from torch import Tensor

from benchmarks.gpu.agreement import difference_of, gradients, relative, setup_of, views_of, within
from benchmarks.gpu.settings import Result, Settings, Skipped
from sslkit.machine import distributed
from sslkit.machine.precision import exact_products
from sslkit.methods.base import Batch
from sslkit.testing import in_two_processes
from sslkit.testing.processes import half
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import rows_of, train_step
from sslkit.training.tune.trials import stored_batch

METHODS = ("simclr", "byol", "barlowtwins")
"""Methods whose networks draw nothing, so that two processes compute what one does."""
BACKENDS = {"gloo": "gloo", "nccl": "cpu:gloo,cuda:nccl"}
"""Name -> backend of the process group. gloo comes first, because NCCL may wait for ever where it does not run."""
WITHOUT_NORM = {"method__norm": False, "backbone": "vit_tiny", "backbone__stem": None}
"""Settings without batch norm, which torch synchronises on cards only."""
ALLOWED = {"loss": 1e-4, "gradient": 1e-2, "norm_statistics": 1e-3}
"""Largest relative differences in fp32; statistics of half of a batch are further off."""
REFUSED = ("Duplicate GPU detected", "ncclInvalidUsage", "invalid usage")
"""NCCL's answers to two processes on one card."""


def items(settings: Settings) -> list[str]:
    methods = METHODS if settings.on_card else METHODS[:1]
    return [f"{backend} {method}" for backend in BACKENDS for method in methods]


def two_processes(item: str, settings: Settings) -> Result:
    """Compare one step of two processes with one step of one, on the same views."""
    backend, method = item.split()
    if backend == "nccl" and not settings.on_card:
        raise Skipped("NCCL exchanges between cards only")
    with tempfile.TemporaryDirectory() as folder:
        try:
            in_two_processes(step_of_half, method, settings, folder, backend=BACKENDS[backend])
        except Exception as error:
            refusal = [line for line in str(error).splitlines() if any(text in line for text in REFUSED)]
            if backend == "nccl" and torch.cuda.device_count() == 1 and refusal:
                raise Skipped(f"NCCL does not run two processes on one card: {refusal[-1]}") from error
            raise
        first, second = (load_file(Path(folder) / f"{rank}.safetensors") for rank in (0, 1))
    return compared(first, second, first_step(made(method, settings))) | {"cards": torch.cuda.device_count()}


def step_of_half(rank: int, method: str, settings: Settings, folder: str) -> None:
    """Take a step in one of two processes; write what happened."""
    save_file(first_step(made(method, settings), rank), f"{folder}/{rank}.safetensors")


def made(method: str, settings: Settings) -> TrainingSetup:
    """Build the run in this process: on its own card where there are two, on one that they share where not."""
    if not settings.on_card:
        return setup_of(method, "cpu", settings, **WITHOUT_NORM)
    return setup_of(method, f"cuda:{distributed.rank() % torch.cuda.device_count()}", settings)


def first_step(setup: TrainingSetup, rank: int | None = None) -> dict[str, Tensor]:
    """Take one step on the first batch, or on the half of it that process `rank` has.

    Returns the mean loss of all processes, the gradients, and the state that the step leads to.
    """
    with distributed.alone():
        images = stored_batch(setup, 0)
        batch = Batch(views_of(setup), images.indices)
    if rank is not None:
        batch = half(batch, rank)
        images = rows_of(images, slice(rank * len(batch.indices), (rank + 1) * len(batch.indices)))
    setup.augmentation = StoredViews(batch.crops)
    seen: dict[str, Tensor] = {}
    setup.optimizer.register_step_pre_hook(lambda *_: seen.update(prefixed("gradient", gradients(setup))))
    with exact_products():
        loss = train_step(setup, [images], 0)["loss"]
    state = {name: value.detach().cpu().clone().contiguous() for name, value in setup.method.state_dict().items()}
    return seen | prefixed("state", state) | {"loss": distributed.mean(loss).cpu()}


def prefixed(word: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{word} {name}": tensor for name, tensor in tensors.items()}


def compared(first: dict[str, Tensor], second: dict[str, Tensor], whole: dict[str, Tensor]) -> Result:
    """Return how far the first process is from the second, and from one process with the whole batch."""
    differences = {
        "loss": relative(float(first["loss"]), float(whole["loss"])),
        "gradient": difference_of(having(first, "gradient"), having(whole, "gradient")),
        "norm_statistics": difference_of(having(first, "running_"), having(whole, "running_")),
    }
    unequal = [name for name in first if not torch.equal(first[name], second[name])]
    return {
        "differences": differences,
        "allowed": ALLOWED,
        "normalised_layers": len(having(whole, "running_mean")),
        "unequal_between_processes": unequal[:5],
        "passed": within(differences, ALLOWED) and not unequal,
    }


def having(tensors: dict[str, Tensor], text: str) -> dict[str, Tensor]:
    """Return the tensors whose name contains a text, in float64."""
    return {name: tensor.double() for name, tensor in tensors.items() if text in name}
