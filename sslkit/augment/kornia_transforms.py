"""Any kornia augmentation as a transform, by its class name."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from sslkit.errors import UserError
from sslkit.plugins import suggest


def _by_name(value: Any) -> list[dict[str, dict[str, Any]]]:
    """Convert ["RandomPerspective", {"RandomErasing": {"p": 0.3}}] to a list of {name: options}, checking each."""
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list, such as [RandomPerspective, {RandomErasing: {p: 0.3}}]")
    return [dict([_checked(item)]) for item in value]


def _checked(item: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, Mapping) or len(item) != 1:
        raise ValueError(f"{item!r} must be a name, or one name with its options: {{RandomErasing: {{p: 0.3}}}}")
    name, options = next(iter(item.items()))
    if not isinstance(options or {}, Mapping):
        raise ValueError(f"the options of {name} must be a mapping, such as {{p: 0.3}}")
    options = dict(options or {})
    build(str(name), options)
    return str(name), options


Extra = Annotated[tuple[dict[str, dict[str, Any]], ...], BeforeValidator(_by_name)]


def build(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return kornia.augmentation.<name>(**options), with lists converted to tuples.

    Raises ValueError, which states the remedy, if there is no such augmentation or it rejects the options.
    """
    available = _augmentations()
    if name not in available:
        raise ValueError(f"kornia.augmentation has no image augmentation {name!r}; {suggest(name, sorted(available))}")
    try:
        return available[name](**{str(key): _tuples(value) for key, value in options.items()})
    except Exception as error:
        raise ValueError(f"kornia's {name} does not take {dict(options)}: {' '.join(str(error).split())}") from error


def _augmentations() -> dict[str, type[nn.Module]]:
    import kornia.augmentation as kornia

    kinds = (kornia.IntensityAugmentationBase2D, kornia.GeometricAugmentationBase2D)
    return {
        name: thing
        for name, thing in vars(kornia).items()
        if isinstance(thing, type) and issubclass(thing, kinds) and "Base" not in name
    }


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class KorniaTransforms(nn.Sequential):
    """kornia augmentations in sequence, on float [N, 3, size, size] in [0, 1].

    Raises UserError if one of them fails on such images or changes their size.
    """

    def __init__(self, transforms: tuple[dict[str, dict[str, Any]], ...], size: int) -> None:
        super().__init__(*[build(name, options) for transform in transforms for name, options in transform.items()])
        for transform in self:
            _try_out(transform, size)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        with _seeded(images.device, generator):
            out: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
            return out


def _try_out(transform: nn.Module, size: int) -> None:
    name = type(transform).__name__
    # Enough images that some are transformed even if p is small.
    images = torch.full((16, 3, size, size), 0.5)
    try:
        with _seeded(images.device, torch.Generator()):
            shape = transform(images).shape
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"augment.extra: kornia's {name} fails on {size} px images ({reason}); check its options"
        ) from error
    if shape != images.shape:
        raise UserError(
            f"augment.extra: kornia's {name} makes {tuple(shape[2:])} px of {size} px images; "
            "a transform must keep the size (augment.crop resizes)"
        )


@contextmanager
def _seeded(device: torch.device, generator: torch.Generator | None) -> Iterator[None]:
    """Seed torch's global generators, from which kornia draws, from `generator`, and restore them afterwards."""
    if generator is None:
        yield
        return
    seed = _next_seed(generator)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed would also seed the other GPUs, which are not restored.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield


def _next_seed(generator: torch.Generator) -> int:
    # A generator's state is on the host even for CUDA, so reading it needs no synchronisation, unlike a drawn number.
    state = generator.get_state().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(state, digest_size=7).digest())
