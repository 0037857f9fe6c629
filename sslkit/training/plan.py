"""Estimate time, memory and energy of a run before it, by timing a few real steps; nothing is kept."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sslkit.backbones.flops import flops
from sslkit.config.resolve import Resolved
from sslkit.config.run import RunConfig
from sslkit.machine import units
from sslkit.machine.memory import peak_memory, reset_peak_memory
from sslkit.machine.sizes import in_words
from sslkit.runs import energy
from sslkit.training.budget import fit_budget
from sslkit.training.build import build
from sslkit.training.disk import checkpoint_bytes, expected_bytes, kept_checkpoints
from sslkit.training.out_of_memory import is_out_of_memory, out_of_memory
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import train_step
from sslkit.training.timed_steps import endless_batches, timed_steps

if TYPE_CHECKING:
    from rich.table import Table

STEPS = 10
"""Maximum number of timed steps, after one for warm-up."""
SECONDS = 20.0
"""Seconds after which no further step is timed; at least one is timed."""
CARD_GIB = 7.6
"""GiB that a GPU of 8 GB offers to a process; the driver reserves the rest."""
CONTEXT_GIB = 0.5
"""Approximate GiB of the CUDA context, which is not part of any tensor."""


@dataclass(frozen=True)
class Plan:
    """Estimates for a run; `basis` describes how they were obtained."""

    parameters: int
    """Parameters of the backbone."""
    trained: int
    """Parameters that the optimizer updates, heads included."""
    gflops_image: float
    """10⁹ FLOPs of the backbone for one image (two per multiply-add)."""
    pflops: float
    """10¹⁵ FLOPs of the whole training, with backward passes and all views."""
    steps: int
    """Optimizer steps."""
    seconds_step: float
    """Median seconds per step, data loading included."""
    images_per_second: float
    """Images per second of all processes together."""
    hours: float
    """Hours of training, without evaluations."""
    memory_gib: float
    """Peak GiB of one GPU; on a CPU, what a GPU would need."""
    process_gib: float | None
    """Peak GiB of the process that trains on the CPU, measured; None on a GPU."""
    fits_8gb: bool
    """True if `memory_gib` fits a GPU of 8 GB."""
    disk_gb: float
    """Gigabytes, of 10⁹ bytes, that the run keeps on disk: its weights and the checkpoints that stay."""
    kwh: float
    """Energy of training, in kWh."""
    kg_co2e: float
    """Emissions of training, in kg of CO2 equivalent."""
    basis: dict[str, str]
    """Sentences under the keys time, memory, disk and energy that describe how these estimates were obtained."""


def plan(resolved: Resolved, log: Callable[[str], None] = lambda text: None) -> Plan:
    """Estimate a run by timing a few real steps. Writes nothing but packed images in the cache, which runs use too.

    For several processes, one is tried with its share of the batch. Raises UserError as the run would, also if memory
    runs out.
    """
    log("plan:     preparing the images and the network of the run, without training it")
    config = fit_budget(resolved, log).config
    processes = config.devices
    # Compilation takes longer than a plan should, and hides FLOPs from the counter.
    share = {"batch_size": config.batch_size // processes, "devices": 1, "compile": False}
    # On a CPU the trials of `tune`, which take place in `build`, belong to the peak of the run.
    reset_peak_memory(torch.device("cpu"))
    setup = build(config.model_copy(update=share), log)
    steps = setup.steps_per_epoch // processes * config.epochs
    log(f"plan:     counting the operations of a step, and timing steps for up to {SECONDS:.0f} s")
    seconds, step_flops, (memory, memory_basis) = _try(setup)
    step_time = median(seconds)
    hours = step_time * steps / 3600
    spent = energy.estimate(hours, setup.device, config.carbon, processes)
    net = setup.method.backbone
    return Plan(
        parameters=sum(p.numel() for p in net.parameters()),
        trained=sum(p.numel() for group in setup.optimizer.param_groups for p in group["params"]),
        gflops_image=flops(net, setup.stores.image_size) / 1e9,
        pflops=step_flops * processes * steps / 1e15,
        steps=steps,
        seconds_step=step_time,
        images_per_second=config.batch_size * config.accumulate / step_time,
        hours=hours,
        memory_gib=memory,
        process_gib=peak_memory(setup.device) if setup.device.type == "cpu" else None,
        fits_8gb=memory <= CARD_GIB,
        disk_gb=expected_bytes(setup) / 1e9,
        kwh=spent.kwh,
        kg_co2e=spent.kg_co2e,
        basis={
            "time": _time_basis(len(seconds), config),
            "memory": memory_basis,
            "disk": f"weights and {kept_checkpoints(config)} checkpoints of {in_words(checkpoint_bytes(setup))}",
            "energy": spent.basis,
        },
    )


def as_table(plan: Plan) -> "Table":
    """Return a table for the terminal: quantity, estimate, and how it was obtained."""
    from rich.table import Table

    table = Table("", "expected", "how it is known", box=None, header_style="bold", pad_edge=False)
    for row in _rows(plan):
        table.add_row(*row)
    return table


def _rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    fits = "fits" if plan.fits_8gb else "does not fit"
    yield "backbone", f"{plan.parameters / 1e6:.3g} M parameters, {plan.gflops_image:.3g} GFLOPs per image", "counted"
    yield "training", f"{plan.trained / 1e6:.3g} M parameters, {plan.pflops:.3g} PFLOPs", "counted in one step"
    yield "steps", f"{plan.steps:,}", "counted"
    yield "speed", f"{plan.seconds_step:.3g} s/step, {plan.images_per_second:.0f} images/s", plan.basis["time"]
    yield "time", units.duration(3600 * plan.hours), "steps × seconds per step; without evaluations"
    if plan.process_gib is not None:
        yield "memory", f"{plan.process_gib:.2f} GiB", "measured: peak of this process in these steps"
    on_gpu = "memory" if plan.process_gib is None else "on a GPU"
    yield on_gpu, f"{plan.memory_gib:.2f} GiB: {fits} a GPU of 8 GB", plan.basis["memory"]
    yield "disk", in_words(1e9 * plan.disk_gb), plan.basis["disk"]
    yield "energy", f"{units.energy(plan.kwh)}, {units.emissions(plan.kg_co2e)}", plan.basis["energy"]


def _try(setup: TrainingSetup) -> tuple[list[float], int, tuple[float, str]]:
    """Return (seconds of each timed step, FLOPs of one step, (GiB of memory, how that was obtained))."""
    batches = endless_batches(setup)
    first = list(islice(batches, setup.config.accumulate))
    try:
        step_flops, saved = _first_step(setup, first)
        seconds = list(timed_steps(setup, batches, STEPS, SECONDS))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise out_of_memory(setup, first[0], error) from error
        raise
    memory = _measured(setup.device) if setup.device.type == "cuda" else _estimated(setup, saved)
    return seconds, step_flops, memory


def _first_step(setup: TrainingSetup, image_batches: list[Any]) -> tuple[int, int]:
    """Return (FLOPs, peak bytes saved for the backward pass) of the warm-up step."""
    from torch.utils.flop_counter import FlopCounterMode

    if setup.device.type == "cuda":
        reset_peak_memory(setup.device)
    saved = _SavedTensors(setup)
    setup.schedule.set(0)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    with counter, torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        train_step(setup, image_batches, 0)
    return counter.get_total_flops(), saved.peak


def _convolution_backward(
    gradient: list[int], x: list[int], weight: list[int], *settings: Any, out_shape: Any = None
) -> int:
    """Return the FLOPs of a convolution's backward pass: those of its forward pass for each of the two gradients.

    torch's own formula ignores groups: it counts the weight gradient as if every channel were connected to every other.
    """
    from torch.utils.flop_counter import conv_flop_count

    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = settings
    count: int = conv_flop_count(x, weight, gradient, transposed) * sum(wanted[:2])
    return count


def _time_basis(timed: int, config: RunConfig) -> str:
    basis = f"median of {timed} real steps after one" + ("" if config.compile is False else ", uncompiled")
    return basis if config.devices == 1 else f"{basis}, in one of {config.devices} processes; communication not counted"


# --- memory ---


def _measured(device: torch.device) -> tuple[float, str]:
    gib = torch.cuda.max_memory_allocated(device) / 2**30
    return gib + CONTEXT_GIB, f"measured: {gib:.2f} at the peak of all tensors, plus about {CONTEXT_GIB} for CUDA"


def _estimated(setup: TrainingSetup, saved: int) -> tuple[float, str]:
    """Estimate the memory that a GPU would need, from the tensors on this device."""
    stepped = [p for group in setup.optimizer.param_groups for p in group["params"]]
    state = [t for tensors in setup.optimizer.state.values() for t in tensors.values() if isinstance(t, Tensor)]
    weights = [*setup.method.parameters(), *setup.method.buffers()]
    model = _bytes(weights) + _bytes(stepped) + _bytes(state)
    images = len(setup.stores.pretrain) * 3 * setup.stores.pretrain.size**2 if setup.loader.kind == "resident" else 0
    gib = [n / 2**30 for n in (saved, model, images)]
    dtype = str(setup.autocast or torch.float32).removeprefix("torch.")
    basis = (
        f"estimated: {gib[0]:.2f} saved for the backward pass ({dtype}), {gib[1]:.2f} of weights, gradients and "
        f"optimizer, {gib[2]:.2f} of images, {CONTEXT_GIB} for CUDA; temporary buffers not counted"
    )
    return sum(gib) + CONTEXT_GIB, basis


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class _SavedTensors:
    """Bytes that autograd saves for the backward pass: each storage is counted once, weights not at all."""

    def __init__(self, setup: TrainingSetup) -> None:
        self._weights = {p.untyped_storage().data_ptr() for p in setup.method.parameters()}
        self._references: dict[int, int] = {}
        self._bytes = 0
        self.peak = 0
        """Maximum bytes at one time."""

    def pack(self, tensor: Tensor) -> "_SavedTensor":
        return _SavedTensor(tensor.detach(), self)

    @staticmethod
    def unpack(saved: "_SavedTensor") -> Tensor:
        return saved.tensor

    def count(self, storage: torch.UntypedStorage, change: int) -> None:
        """Count one saved tensor more (change = 1) or less (-1) in `storage`."""
        address = storage.data_ptr()
        if address in self._weights:
            return
        before = self._references.get(address, 0)
        self._references[address] = before + change
        if (before > 0) != (before + change > 0):
            self._bytes += change * storage.nbytes()
            self.peak = max(self.peak, self._bytes)


class _SavedTensor:
    """A tensor that autograd saves; it is counted until autograd releases it."""

    def __init__(self, tensor: Tensor, counter: _SavedTensors) -> None:
        self.tensor, self._counter = tensor, counter
        counter.count(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self._counter.count(self.tensor.untyped_storage(), -1)
