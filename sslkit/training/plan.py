"""What a run would take, found out before it: a few real steps are timed, and nothing of it is kept."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sslkit.backbones.flops import flops
from sslkit.config.resolve import Resolved
from sslkit.config.run import RunConfig
from sslkit.machine.stopwatch import Stopwatch
from sslkit.runs import energy
from sslkit.training.build import build
from sslkit.training.out_of_memory import is_out_of_memory, out_of_memory
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import train_step

if TYPE_CHECKING:
    from rich.table import Table

STEPS = 10
"""Steps that are timed, at most; the first step, which warms up, is not one of them."""
SECONDS = 20.0
"""Time for them; at least one is timed, however long it takes."""
CARD_GIB = 7.6
"""What a card of 8 GB has left for a process, GiB: the driver keeps some of 8."""
CONTEXT_GIB = 0.5
"""About what CUDA itself takes of that, in no tensor."""


@dataclass(frozen=True)
class Plan:
    """What a run would take; `basis` says how each of it is known."""

    parameters: int
    """Of the backbone."""
    trained: int
    """Parameters that are stepped, heads included."""
    gflops_image: float
    """10⁹ FLOPs of the backbone for one image (two a multiply-add)."""
    pflops: float
    """10¹⁵ FLOPs of the whole training, backward passes and every view included."""
    steps: int
    """Optimizer steps."""
    seconds_step: float
    """Median seconds of one, data included."""
    images_per_second: float
    """Of all processes together."""
    hours: float
    """Of training alone: evaluations come on top."""
    memory_gib: float
    """Largest need of one device."""
    fits_8gb: bool
    """Whether that is less than a card of 8 GB has."""
    kwh: float
    kg_co2e: float
    basis: dict[str, str]
    """In words: time, memory, energy."""


def plan(resolved: Resolved, log: Callable[[str], None] = lambda text: None) -> Plan:
    """Time a few real steps of the run. Writes nothing, apart from packed images into the cache that a run uses too.

    Of several processes one is tried, with its share of the batch. Raises UserError as the run would, out of
    memory included.
    """
    config, processes = resolved.config, resolved.config.devices
    # Compiling takes longer than a plan should, and hides the FLOPs.
    share = {"batch_size": config.batch_size // processes, "devices": 1, "compile": False}
    setup = build(config.model_copy(update=share), log)
    steps = setup.steps_per_epoch // processes * config.epochs
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
        fits_8gb=memory <= CARD_GIB,
        kwh=spent.kwh,
        kg_co2e=spent.kg_co2e,
        basis={"time": _time_basis(len(seconds), config), "memory": memory_basis, "energy": spent.basis},
    )


def as_table(plan: Plan) -> "Table":
    """For the terminal: what, how much, and how it is known."""
    from rich.table import Table

    table = Table("", "expected", "how it is known", box=None, header_style="bold", pad_edge=False)
    for row in _rows(plan):
        table.add_row(*row)
    return table


def _rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    fits = "fits" if plan.fits_8gb else "does not fit"
    yield "backbone", f"{plan.parameters / 1e6:.3g} M parameters, {plan.gflops_image:.3g} GFLOPs an image", "counted"
    yield "training", f"{plan.trained / 1e6:.3g} M parameters, {plan.pflops:.3g} PFLOPs", "counted in one step"
    yield "steps", f"{plan.steps:,}", "counted"
    yield "speed", f"{plan.seconds_step:.3g} s a step, {plan.images_per_second:.0f} images/s", plan.basis["time"]
    yield "time", f"{plan.hours:.3g} h", "steps × seconds a step; evaluations come on top"
    yield "memory", f"{plan.memory_gib:.2f} GiB: {fits} a card of 8 GB", plan.basis["memory"]
    yield "energy", f"{plan.kwh:.3g} kWh, {plan.kg_co2e:.3g} kg CO2e", plan.basis["energy"]


def _try(setup: TrainingSetup) -> tuple[list[float], int, tuple[float, str]]:
    """(seconds of each timed step, FLOPs of one, (GiB of memory, how that is known))."""
    batches = chain.from_iterable(setup.loader.epoch(epoch, 0) for epoch in count())
    first = list(islice(batches, setup.config.accumulate))
    try:
        step_flops, kept = _first_step(setup, first)
        seconds = list(_timed_steps(setup, batches))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise out_of_memory(setup, first[0], error) from error
        raise
    memory = _measured(setup.device) if setup.device.type == "cuda" else _estimated(setup, kept)
    return seconds, step_flops, memory


def _first_step(setup: TrainingSetup, image_batches: list[Any]) -> tuple[int, int]:
    """(FLOPs, bytes kept for the backward pass) of the step that warms up."""
    from torch.utils.flop_counter import FlopCounterMode

    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)
    kept = _Kept(setup)
    setup.schedule.set(0)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    with counter, torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        train_step(setup, image_batches, 0)
    return counter.get_total_flops(), kept.peak


def _convolution_backward(
    gradient: list[int], x: list[int], weight: list[int], *settings: Any, out_shape: Any = None
) -> int:
    """FLOPs of a convolution's backward pass: those of its forward pass again for each of its two gradients.

    torch's own formula counts the weights of a convolution in groups as if every channel met every other.
    """
    from torch.utils.flop_counter import conv_flop_count

    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = settings
    count: int = conv_flop_count(x, weight, gradient, transposed) * sum(wanted[:2])
    return count


def _timed_steps(setup: TrainingSetup, batches: Iterator[Any]) -> Iterator[float]:
    began = time.perf_counter()
    for number in range(1, STEPS + 1):
        with Stopwatch(setup.device) as watch:
            step = min(number, setup.steps - 1)
            image_batches = list(islice(batches, setup.config.accumulate))
            setup.schedule.set(step)
            train_step(setup, image_batches, step)
        yield watch.seconds
        if time.perf_counter() - began > SECONDS:
            return


def _time_basis(timed: int, config: RunConfig) -> str:
    basis = f"median of {timed} real steps after one" + ("" if config.compile is False else ", uncompiled")
    return basis if config.devices == 1 else f"{basis}, of one of {config.devices} processes; no exchange counted"


# --- memory ---


def _measured(device: torch.device) -> tuple[float, str]:
    gib = torch.cuda.max_memory_allocated(device) / 2**30
    return gib + CONTEXT_GIB, f"measured: peak of all tensors, {gib:.2f}, and about {CONTEXT_GIB} for CUDA itself"


def _estimated(setup: TrainingSetup, kept: int) -> tuple[float, str]:
    """What a GPU would need, of what this device shows."""
    stepped = [p for group in setup.optimizer.param_groups for p in group["params"]]
    state = [t for tensors in setup.optimizer.state.values() for t in tensors.values() if isinstance(t, Tensor)]
    weights = [*setup.method.parameters(), *setup.method.buffers()]
    model = _bytes(weights) + _bytes(stepped) + _bytes(state)
    images = len(setup.stores.pretrain) * 3 * setup.stores.pretrain.size**2 if setup.loader.kind == "resident" else 0
    gib = [n / 2**30 for n in (kept, model, images)]
    dtype = str(setup.autocast or torch.float32).removeprefix("torch.")
    basis = (
        f"estimated: {gib[0]:.2f} kept for the backward pass ({dtype}), {gib[1]:.2f} of weights, gradients and "
        f"optimizer, {gib[2]:.2f} of images, {CONTEXT_GIB} for CUDA; passing buffers not counted"
    )
    return sum(gib) + CONTEXT_GIB, basis


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class _Kept:
    """Bytes that autograd keeps for the backward pass: each piece of memory once, and `peak` the most at one time."""

    def __init__(self, setup: TrainingSetup) -> None:
        self._weights = {p.untyped_storage().data_ptr() for p in setup.method.parameters()}
        self._holders: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def pack(self, tensor: Tensor) -> "_Held":
        return _Held(tensor.detach(), self)

    @staticmethod
    def unpack(held: "_Held") -> Tensor:
        return held.tensor

    def hold(self, memory: torch.UntypedStorage, holders: int) -> None:
        """`holders`: 1 for one more tensor in this piece of memory, -1 for one less."""
        where = memory.data_ptr()
        if where in self._weights:
            return
        before = self._holders.get(where, 0)
        self._holders[where] = before + holders
        if (before > 0) != (before + holders > 0):
            self._now += holders * memory.nbytes()
            self.peak = max(self.peak, self._now)


class _Held:
    """A tensor that autograd keeps; when autograd lets go of it, it no longer counts."""

    def __init__(self, tensor: Tensor, kept: _Kept) -> None:
        self.tensor, self._kept = tensor, kept
        kept.hold(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self._kept.hold(self.tensor.untyped_storage(), -1)
