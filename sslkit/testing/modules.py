"""Checks that methods and backbones share as modules: gradients, and weights that can be saved."""

from safetensors.torch import load, save
from torch import nn

from sslkit.testing.contract import expect


def check_gradients(module: nn.Module) -> None:
    """Check after a backward pass that every trainable parameter has a finite gradient."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None]
    expect(
        not without,
        f"every trainable parameter must get a gradient, but these get none: {', '.join(without)}; "
        "use them, or freeze them with requires_grad_(False)",
    )
    wild = [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
    expect(not wild, f"gradients must be finite, but are not for {', '.join(wild)}")


def restore(module: nn.Module, twin: nn.Module) -> None:
    """Give `twin` the state of `module` through safetensors, as checkpoints do."""
    try:
        saved = save({name: value.contiguous() for name, value in module.state_dict().items()})
    except RuntimeError as error:
        raise AssertionError(
            f"state_dict must save to safetensors, where no two tensors may share memory: {error}"
        ) from error
    twin.load_state_dict(load(saved), strict=True)
