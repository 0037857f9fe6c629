"""Numeric precision: autocast dtypes, TF32, and native support for bf16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def uncompiled() -> Any:
    """Return a context in which compiled networks run eagerly, because evaluations use other batch sizes and modes."""
    return torch.compiler.set_stance("force_eager")


@contextmanager
def exact_products() -> Iterator[None]:
    """Disable TF32 inside the block, so that float32 products are exact on GPUs; restore the settings afterwards."""
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
    """Return torch's older TF32 switches for (matrix products, cuDNN).

    torch refuses to read them if newer switches were set to other values.
    """
    try:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return False, False


def _allow_tf32(products: bool, cudnn: bool) -> None:
    """Set torch's older TF32 switches, which also set the newer ones, and can then be read by other code."""
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = cudnn


def usual_precision(device: torch.device) -> str:
    """Return bf16 for a GPU that supports it, else fp32."""
    return "bf16" if device.type == "cuda" and has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Return True if the device supports bf16 natively, without emulation."""
    if device.type == "cuda":
        answer: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return answer
    known = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return known and torch.ops.mkldnn._is_mkldnn_bf16_supported()
