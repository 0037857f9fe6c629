"""Execution of a network, as opposed to what it computes: precision, memory format, compilation."""

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

COMPILED = {"no": "", "default": ", compiled", "graphs": ", compiled, CUDA graphs"}
"""Values of `Execution.compile`, and their names for readers, after a comma."""


@dataclass(frozen=True)
class Execution:
    """Settings for executing a training step. Results differ only by rounding and by the precision."""

    precision: str = "fp32"
    """Autocast precision: fp32, bf16 or fp16."""
    channels_last: bool = True
    """True if images and weights use the channels_last memory format."""
    compile: str = "no"
    """no; default: backbones compiled by `torch.compile`; graphs: compiled and replayed as CUDA graphs."""
    depthwise_fp32: bool = False
    """True if depthwise convolutions are excluded from autocast: processors with faster matrix products in bf16 can be
    slower at these."""
    compiled_views: bool = False
    """True if the augmentation is compiled by `torch.compile` on a GPU; the CPU has kernels of its own."""

    @classmethod
    def of(cls, noted: dict[str, Any]) -> "Execution":
        """Return an execution that `dataclasses.asdict` has described. Raises TypeError or ValueError for no such."""
        made = cls(**noted)
        switches = (made.channels_last, made.depthwise_fp32, made.compiled_views)
        if (
            made.precision not in PRECISIONS
            or made.compile not in COMPILED
            or not all(s in (True, False) for s in switches)
        ):
            raise ValueError("the execution is not one that sslkit chooses")
        return made

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        compiled = COMPILED[self.compile]
        depthwise = ", depthwise in fp32" if self.depthwise_fp32 else ""
        views = ", views compiled" if self.compiled_views else ""
        return f"{self.precision}{depthwise}, {layout}{compiled}{views}"

    @property
    def autocast(self) -> torch.dtype | None:
        """The autocast dtype, or None for float32."""
        return PRECISIONS[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def context(self, device: torch.device) -> Any:
        """Return the autocast context of forward passes."""
        return torch.autocast(device.type, self.autocast) if self.autocast else nullcontext()

    def laid_out(self, views: list[Tensor]) -> list[Tensor]:
        """Convert views, which augmentations return in channels_last, to the memory format of the network."""
        return views if self.channels_last else [view.contiguous() for view in views]

    def mark_step(self) -> None:
        """Mark the beginning of a step, so that CUDA graphs may reuse the memory of the step before."""
        if self.compile == "graphs":
            torch.compiler.cudagraph_mark_step_begin()

    def apply_to_augmentation(self, augmentation: nn.Module) -> None:
        """Compile the augmentation, or undo its compilation, in place."""
        for multi_view in multi_view_augmentations(augmentation):
            multi_view.compile() if self.compiled_views else multi_view.compile_no_longer()

    def apply(self, method: Method) -> None:
        """Set the memory format of the weights and what autocast applies to, and compile the backbone and its momentum
        encoders or undo their compilation, in place."""
        method.to(memory_format=self.memory_format)
        for convolution in depthwise_convolutions(method):
            convolution.__dict__.pop("forward", None)
            if self.depthwise_fp32:
                # A bound method, because deepcopy of the module binds it to the copy.
                convolution.__dict__["forward"] = MethodType(_forward_in_fp32, convolution)
        for network in networks(method):
            network._compiled_call_impl = None
            if self.compile != "no":
                mode = "reduce-overhead" if self.compile == "graphs" else None
                network.compile(mode=mode, dynamic=False)


def networks(method: Method) -> Iterator[nn.Module]:
    """Yield the backbone and its momentum encoders, which take most of the time of a step."""
    return (module for module in method.modules() if type(module) is type(method.backbone))


def multi_view_augmentations(augmentation: nn.Module) -> Iterator[MultiViewAugmentation]:
    """Yield the `MultiViewAugmentation`s in a run's augmentation: several for some methods, none for some plugins."""
    return (module for module in augmentation.modules() if isinstance(module, MultiViewAugmentation))


def depthwise_convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    """Yield the convolutions with one filter group per channel, which compute little for the memory they read."""
    convolutions = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return (layer for layer in convolutions if layer.groups == layer.in_channels > 1)


def _forward_in_fp32(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return type(convolution).forward(convolution, x.float())


def usual(config: RunConfig, device: torch.device) -> Execution:
    """Return the default execution for the settings and the device, which is the baseline of tuning."""
    precision = usual_precision(device) if config.precision == "auto" else config.precision
    return Execution(
        precision=precision,
        channels_last=config.channels_last is not False,
        compile="default" if config.compile is True else "no",
        depthwise_fp32=config.depthwise_fp32 is True and precision != "fp32",
    )


def possible_here(execution: Execution, device: torch.device) -> Execution:
    """Return the execution that a run was started with, adapted to the device and processes that resume it."""
    single_gpu = device.type == "cuda" and distributed.world() == 1
    compiled = "default" if execution.compile == "graphs" and not single_gpu else execution.compile
    return replace(execution, compile=compiled, compiled_views=execution.compiled_views and device.type == "cuda")
