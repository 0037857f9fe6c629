"""How a network is run, beside what it computes: precision, memory format, compilation."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sslkit import distributed
from sslkit.augment.views import Views
from sslkit.config import RunConfig
from sslkit.methods.base import Method

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """One way to run a step. Two of them differ in rounding alone, and in the precision that they name."""

    precision: str = "fp32"
    """fp32, bf16 or fp16, the type of autocast."""
    channels_last: bool = True
    """Whether images and weights lie in memory with the channels last."""
    compile: str = "no"
    """no; default: the backbones by `torch.compile`; graphs: the same, replayed as CUDA graphs."""
    depthwise_fp32: bool = False
    """Whether depthwise convolutions are kept out of autocast: processors that multiply matrices faster in bf16
    take longer over these."""
    compiled_views: bool = False
    """Whether a GPU makes the views by `torch.compile`; the CPU has kernels of its own."""

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        compiled = {"no": "", "default": ", compiled", "graphs": ", compiled, CUDA graphs"}[self.compile]
        depthwise = ", depthwise in fp32" if self.depthwise_fp32 else ""
        views = ", views compiled" if self.compiled_views else ""
        return f"{self.precision}{depthwise}, {layout}{compiled}{views}"

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast type, or None for plain float32."""
        return PRECISIONS[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def context(self, device: torch.device) -> Any:
        """The precision of forward passes."""
        return torch.autocast(device.type, self.autocast) if self.autocast else nullcontext()

    def laid_out(self, views: list[Tensor]) -> list[Tensor]:
        """Views, which recipes give channels last, as the network wants them."""
        return views if self.channels_last else [view.contiguous() for view in views]

    def mark_step(self) -> None:
        """To be called before each step: CUDA graphs may then write where those of the step before have written."""
        if self.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()

    def apply_to_views(self, views: nn.Module) -> None:
        """Compile the recipes, or no longer compile them, in place."""
        for recipe in view_recipes(views):
            recipe.compile() if self.compiled_views else recipe.compile_no_longer()

    def apply(self, method: Method) -> None:
        """Lay out the weights, set what autocast reaches, and compile or no longer compile the backbone and its
        slow copies, in place."""
        method.to(memory_format=self.memory_format)
        for convolution in depthwise_convolutions(method):
            convolution.__dict__.pop("forward", None)
            if self.depthwise_fp32:
                # A bound method: a copy of the module takes along one bound to itself.
                convolution.__dict__["forward"] = MethodType(_forward_in_fp32, convolution)
        for network in networks(method):
            network._compiled_call_impl = None
            if self.compile != "no":
                mode = "reduce-overhead" if self.compile == "graphs" else None
                network.compile(mode=mode, dynamic=False)


def networks(method: Method) -> Iterator[nn.Module]:
    """The backbone and its slow copies: what a step spends its time in."""
    return (module for module in method.modules() if type(module) is type(method.backbone))


def view_recipes(views: nn.Module) -> Iterator[Views]:
    """The recipes of a run's views that are made of named steps: a method may have several, a plugin other ones."""
    return (part for part in views.modules() if isinstance(part, Views))


def depthwise_convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    """Those with a filter a channel: little to multiply for what they read."""
    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d))
    return (part for part in convolutions if part.groups == part.in_channels > 1)


def _forward_in_fp32(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return type(convolution).forward(convolution, x.float())


def uncompiled() -> Any:
    """A context in which compiled networks run as they were written: evaluations have other batches and modes."""
    return torch.compiler.set_stance("force_eager")


@contextmanager
def exact_products() -> Iterator[None]:
    """Inside, GPUs round no float32 product to TF32; afterwards all is allowed that was before."""
    backends: Any = torch.backends
    kinds = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    precisions, allowed = [kind.fp32_precision for kind in kinds], _tf32_allowed()
    _allow_tf32(False, False)
    try:
        yield
    finally:
        _allow_tf32(*allowed)
        for kind, precision in zip(kinds, precisions):
            kind.fp32_precision = precision


def _tf32_allowed() -> tuple[bool, bool]:
    """Of matrix products and of cuDNN, by torch's older switches; they cannot be read where only newer ones are set."""
    try:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return False, False


def _allow_tf32(products: bool, cudnn: bool) -> None:
    """By the older switches, for they set the newer ones too, and whoever reads them gets an answer."""
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = cudnn


def usual(config: RunConfig, device: torch.device) -> Execution:
    """What is right almost everywhere, where the settings leave it open: the start of every search."""
    precision = usual_precision(device) if config.precision == "auto" else config.precision
    return Execution(
        precision=precision,
        channels_last=config.channels_last is not False,
        compile="default" if config.compile is True else "no",
        depthwise_fp32=config.depthwise_fp32 is True and precision != "fp32",
    )


def usual_precision(device: torch.device) -> str:
    """bf16 on a GPU that has it, else fp32."""
    return "bf16" if device.type == "cuda" and has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 instead of imitating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return known and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def eager_candidates(config: RunConfig, device: torch.device, method: Method) -> list[Execution]:
    """The usual way, and those that differ from it in one thing that the settings leave open; all uncompiled.

    Depthwise convolutions in fp32, where the network has any, are tried with each precision below that.
    """
    config = config.model_copy(update={"compile": False})
    ways = [usual(config, device)]
    if config.precision == "auto" and has_bf16(device):
        other = "fp32" if ways[0].precision == "bf16" else "bf16"
        ways.append(usual(config.model_copy(update={"precision": other}), device))
    if config.depthwise_fp32 == "auto" and any(depthwise_convolutions(method)):
        ways += [replace(way, depthwise_fp32=True) for way in ways if way.precision != "fp32"]
    if config.channels_last == "auto":
        ways.append(replace(ways[0], channels_last=False))
    return ways


def compiled_candidates(config: RunConfig, device: torch.device, best: Execution) -> list[Execution]:
    """The best uncompiled way, compiled, where the settings leave that open.

    Not with several GPUs: what a process tries alone has no synchronised batch norm, which compiles otherwise and
    cannot be replayed as a CUDA graph.
    """
    if config.compile != "auto" or (device.type == "cuda" and distributed.world() > 1):
        return []
    kinds = ["default", "graphs"] if device.type == "cuda" else ["default"]
    return [replace(best, compile=kind) for kind in kinds]


def possible_here(way: Execution, device: torch.device) -> Execution:
    """The way that a run was begun in, on the device and with the number of processes that go on with it."""
    alone_on_gpu = device.type == "cuda" and distributed.world() == 1
    compiled = "default" if way.compile == "graphs" and not alone_on_gpu else way.compile
    return replace(way, compile=compiled, compiled_views=way.compiled_views and device.type == "cuda")
