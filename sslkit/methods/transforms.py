"""Named transformations that preserve the content of an image, to which PIRL learns to be invariant.

They are those of SimCLR's study (Chen et al. 2020, Figures 4 and 5), always applied, at its strengths where stated.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.augment import ops
from sslkit.augment.base import Triple
from sslkit.augment.draws import Draws
from sslkit.augment.transforms import Blur, Crop, Grayscale, Jitter, Solarize
from sslkit.plugins import suggest

JIGSAW = "jigsaw"
"""The transformation that cuts an image into nine tiles, which the method applies itself, last."""
NOISE = 0.1
"""Standard deviation of the noise, where white is 1."""
GREY = 0.5
"""Value of a cut-out square, as in AutoAugment's code, where white is 1."""


@torch.no_grad()
def transform(
    views: Tensor, names: Iterable[str], mean: Triple, std: Triple, generator: torch.Generator | None = None
) -> Tensor:
    """Apply the transformations called `names`, in order, to normalised views [N, 3, S, S]; the shape is unchanged.

    mean, std: normalisation of the views, in units where white is 1.
    generator: source of all randomness, drawn per image; None: torch's global one.
    """
    draws = Draws(1, len(views), views.device, generator)
    # Half precision has too few grey levels, and autocast would compute the matrix products in it.
    with torch.autocast(views.device.type, enabled=False):
        images = _between_0_and_1(views, mean, std)
        for name in names:
            images = TRANSFORMS[name](images, draws)
        return ops.normalize(images, mean, std)


def check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names unchanged. Raises ValueError if one is unknown or repeated, or if there is none."""
    if not names:
        raise ValueError(f"name at least one transformation; there are: {', '.join(NAMES)}")
    for name in names:
        if name not in NAMES:
            raise ValueError(f"no transformation is called {name!r}; {suggest(name, list(NAMES))}")
    if len(set(names)) < len(names):
        raise ValueError("each transformation can be named once")
    return names


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate square images by `turns` times 90° counter-clockwise, int64 [N] in 0..3; exact."""
    odd, half = (bit[:, None, None, None] for bit in (turns % 2 == 1, turns >= 2))
    images = torch.where(odd, images.transpose(2, 3).flip(2), images)
    return torch.where(half, images.flip(2, 3), images)


def cut_out(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Fill squares of `side` pixels around `centres`, float [N, 2] of row and column in pixels, with grey.

    A square near the border is clipped (DeVries & Taylor 2017, arXiv:1708.04552).
    """
    rows, columns = (
        (torch.arange(size, device=images.device) + 0.5 - centre[:, None]).abs() < side / 2
        for size, centre in zip(images.shape[2:], centres.unbind(1))
    )
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], GREY)


def sobel(images: Tensor) -> Tensor:
    """Magnitude of each channel's gradient by Sobel's two filters, with weights whose absolute values sum to 1.

    Equal to kornia's, which builds its kernel on the device at each call and synchronises with it.
    """
    across, down = gradient(images)
    return (across.square() + down.square() + 1e-6).sqrt()


def gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Slope of each channel to the right and downwards, by Sobel's filters, [N, C, S, S] each; borders repeat."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    # Sums with Python numbers: a convolution would round to TF32, and its weights be a copy to the device.
    above, row, below = padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:]
    across, down = (above + 2 * row + below) / 8, (below - above) / 8
    return across[..., 2:] - across[..., :-2], down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]


def _rotation(images: Tensor, draws: Draws) -> Tensor:
    return quarter_turns(images, draws.uniform(0, 4).long())


def _crop(images: Tensor, draws: Draws) -> Tensor:
    return ops.resized_crop(images, Crop().sample(draws, *images.shape[2:]), None, images.shape[2])


def _cutout(images: Tensor, draws: Draws) -> Tensor:
    size = images.shape[2]
    return cut_out(images, draws.table(2, 0, size), side=size // 2)


def _noise(images: Tensor, draws: Draws) -> Tensor:
    device = images.device if draws.generator is None else draws.generator.device
    noise = torch.randn(images.shape, generator=draws.generator, device=device).to(images.device)
    return torch.add(images, noise, alpha=NOISE).clamp_(0, 1)


TRANSFORMS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "rotation": _rotation,
    "crop": _crop,
    "flip": lambda images, draws: images.flip(3),
    "jitter": Jitter(p=1.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
    "grayscale": Grayscale(p=1.0),
    "blur": Blur(p=1.0),
    "sobel": lambda images, draws: sobel(images),
    "cutout": _cutout,
    "noise": _noise,
    "solarize": Solarize(p=1.0),
}
"""Name -> function that transforms float images [N, 3, S, S] in 0..1, given its source of random parameters."""

NAMES = (JIGSAW, *TRANSFORMS)
"""Names of all transformations."""


def _between_0_and_1(views: Tensor, mean: Triple, std: Triple) -> Tensor:
    # Python numbers are passed with the kernel launch; a tensor of them would be a copy to the device.
    planes = [plane * s + m for plane, m, s in zip(views.unbind(1), mean, std)]
    return torch.stack(planes).clamp_(0, 1).transpose(0, 1)
