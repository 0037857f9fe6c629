"""Named layers of a backbone: their names, and the output of one of them during a forward pass.

A map is [N, C, h, w]. The tokens [N, T, C] of a vision transformer count as a map too, as a grid without class and
register tokens, and so do channels-last outputs [N, h, w, C]. Images are assumed to be square.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from math import isqrt
from typing import Any

from torch import Tensor, nn

from sslkit.backbones.stems import dry_run, is_token_net
from sslkit.errors import UserError

WELL_ABOVE_STRIDE = 64
"""Image size, in pixels, at which the last map of a typical network has more than one position."""


class Tap:
    """Output of a layer in the last forward pass."""

    raw: Tensor
    """The output as the layer returned it, with its graph: gradients of later layers reach it."""

    def __init__(self, prefix: int) -> None:
        self._prefix = prefix

    @property
    def output(self) -> Tensor:
        """The output as a map [N, C, h, w]."""
        return as_map(self.raw, self._prefix)


def layer_names(net: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """Map the name of every layer that has a map to its (C, h, w) for one image, in order of execution.

    `image_size` is in pixels. A layer that is called more than once is listed at its last call.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    prefix = _prefix_tokens(net)

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes.pop(name, None)
            if is_map(output, prefix):
                shapes[name] = tuple(as_map(output, prefix).shape[1:])

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in net.named_modules() if name]
    try:
        dry_run(net, image_size)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def last_map(net: nn.Module, image_size: int) -> str:
    """Return the name of the deepest layer whose map still has positions, before global pooling.

    Raises UserError if there is none.
    """
    for name, (_, height, _) in reversed(_shapes_with_positions(net, image_size).items()):
        if height > 1:
            return name
    raise UserError("this backbone has no layer with a map; choose another backbone")


def _shapes_with_positions(net: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """Map names to shapes at a size where the last map has positions: at 32 px it may be as small as if pooled."""
    if image_size < WELL_ABOVE_STRIDE and not is_token_net(net):
        try:
            return layer_names(net, WELL_ABOVE_STRIDE)
        except (RuntimeError, ValueError, AssertionError):
            pass  # The network only accepts images of its own size.
    return layer_names(net, image_size)


@contextmanager
def tap(net: nn.Module, name: str) -> Iterator[Tap]:
    """Record the output of layer `name`, with its graph, in the Tap at every forward pass of `net` in this context.

    Raises UserError, which lists the closest names, if there is no layer of that name.
    """
    modules = dict(net.named_modules())
    if not name or name not in modules:
        closest = get_close_matches(name, [*modules][1:], n=3, cutoff=0)
        raise UserError(f"the backbone has no layer called {name!r}; the closest are {', '.join(closest)}")
    tapped = Tap(_prefix_tokens(net))

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        tapped.raw = output
        # Later layers may write into their input (in-place activations), so they get a copy.
        return output.clone()

    handle = modules[name].register_forward_hook(keep)
    try:
        yield tapped
    finally:
        handle.remove()


def is_map(output: Any, prefix: int = 1) -> bool:
    """Return True if `as_map` accepts this output."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return False
    if output.ndim == 4:
        return output.shape[2] == output.shape[3] or output.shape[1] == output.shape[2]
    return output.ndim == 3 and _grid_side(output, prefix) > 0


def as_map(output: Tensor, prefix: int = 1) -> Tensor:
    """Return a layer's output as a map [N, C, h, w]; `prefix`: number of tokens before those of the grid.

    Raises UserError for an output that is not a map, such as features [N, C].
    """
    if not is_map(output, prefix):
        raise UserError(f"a layer that makes {list(output.shape)} has no map; choose one of layer_names()")
    if output.ndim == 4:
        return output if output.shape[2] == output.shape[3] else output.movedim(-1, 1)
    side = _grid_side(output, prefix)
    out: Tensor = output[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    return out


def _grid_side(tokens: Tensor, prefix: int) -> int:
    """Positions along a side of the grid of tokens; 0 if they form none. Early layers have no prefix yet."""
    counts = (tokens.shape[1] - prefix, tokens.shape[1])
    return next((isqrt(count) for count in counts if count > 0 and isqrt(count) ** 2 == count), 0)


def _prefix_tokens(net: nn.Module) -> int:
    """Number of class and register tokens, as timm's networks declare it; torchvision's have one class token."""
    modules: Iterator[Any] = net.modules()
    return next((m.num_prefix_tokens for m in modules if hasattr(m, "num_prefix_tokens")), 1)
