"""How a network is run, beside what it computes: precision, memory format, compilation."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.augment.multi_view import MultiViewAugmentation
from sslkit.config.run import RunConfig
from sslkit.machine import distributed
from sslkit.machine.precision import PRECISIONS, usual_precision
from sslkit.methods.base import Method


@dataclass(frozen=True)
class Execution:
    """One candidate to run a step. Two of them differ in rounding alone, and in the precision that they name."""

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

    def apply_to_augmentation(self, views: nn.Module) -> None:
        """Compile the recipes, or no longer compile them, in place."""
        for recipe in multi_view_augmentations(views):
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


def multi_view_augmentations(views: nn.Module) -> Iterator[MultiViewAugmentation]:
    """The recipes of a run's views that are made of named steps: a method may have several, a plugin other ones."""
    return (part for part in views.modules() if isinstance(part, MultiViewAugmentation))


def depthwise_convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    """Those with a filter a channel: little to multiply for what they read."""
    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d))
    return (part for part in convolutions if part.groups == part.in_channels > 1)


def _forward_in_fp32(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return type(convolution).forward(convolution, x.float())


def usual(config: RunConfig, device: torch.device) -> Execution:
    """What is right almost everywhere, where the settings leave it open: the start of every search."""
    precision = usual_precision(device) if config.precision == "auto" else config.precision
    return Execution(
        precision=precision,
        channels_last=config.channels_last is not False,
        compile="default" if config.compile is True else "no",
        depthwise_fp32=config.depthwise_fp32 is True and precision != "fp32",
    )


def possible_here(candidate: Execution, device: torch.device) -> Execution:
    """The candidate that a run was begun in, on the device and with the number of processes that go on with it."""
    alone_on_gpu = device.type == "cuda" and distributed.world() == 1
    compiled = "default" if candidate.compile == "graphs" and not alone_on_gpu else candidate.compile
    return replace(candidate, compile=compiled, compiled_views=candidate.compiled_views and device.type == "cuda")
