"""Numeric precision: autocast types, TF32, and what a device computes natively."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def usual_precision(device: torch.device) -> str:
    """bf16 on a GPU that has it, else fp32."""
    return "bf16" if device.type == "cuda" and has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 instead of imitating it."""
    if device.type == "cuda":
        answer: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return answer
    known = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return known and torch.ops.mkldnn._is_mkldnn_bf16_supported()
