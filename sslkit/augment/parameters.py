"""The random parameters of a batch of views, and the plain operations that apply them, the kernels' reference."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sslkit.augment import ops
from sslkit.augment.base import Triple
from sslkit.augment.transforms import NO_BLUR


@dataclass(frozen=True)
class Parameters:
    """One set of parameters per view, N = V*B of them, in blocks of views; None: the transform is not applied."""

    boxes: Tensor
    """[N, 4], rows of top, left, height, width in pixels."""
    flip: Tensor | None = None
    """bool [N]."""
    shared: Tensor | None = None
    """[B, 4], the crop that all views of an image are taken from."""
    rotation: tuple[Tensor, Tensor] | None = None
    """Angle and shear in degrees, [N] each."""
    padding: str = "zeros"
    """Values outside a rotated image."""
    factors: Tensor | None = None
    order: Tensor | None = None
    """Factors and order as `ops.jitter` takes them."""
    gray: Tensor | None = None
    """bool [N]."""
    sigma: Tensor | None = None
    """[N], pixels."""
    kernel_size: int = 3
    solarized: Tensor | None = None
    """bool [N]."""
    threshold: float = 0.5

    def colours_kept(self, kept: Tensor) -> "Parameters":
        """Return a copy that leaves the colours unchanged in the views where `kept`, bool [N], is true."""
        changed = ~kept
        factors = self.factors
        if factors is not None:
            neutral = factors.new_tensor([1.0, 1.0, 1.0, 0.0])[: factors.shape[1]]
            factors = torch.where(kept[:, None], neutral, factors)
        return replace(
            self,
            factors=factors,
            gray=None if self.gray is None else self.gray & changed,
            sigma=None if self.sigma is None else torch.where(kept, NO_BLUR, self.sigma),
            solarized=None if self.solarized is None else self.solarized & changed,
        )


def render_plain(images: Tensor, drawn: Parameters, size: int, mean: Triple, std: Triple) -> Tensor:
    """Render views float32 [N, 3, size, size], normalised, channels_last, from uint8 images [B, 3, H, W]."""
    views = ops.to_float(images)
    if drawn.shared is not None:
        views = ops.resized_crop(views, drawn.shared, None, size)
    if drawn.rotation is not None:
        views = ops.affine(views.repeat(len(drawn.boxes) // len(images), 1, 1, 1), *drawn.rotation, drawn.padding)
    views = ops.resized_crop(views, drawn.boxes, drawn.flip, size)
    if drawn.factors is not None and drawn.order is not None:
        views = ops.jitter(views, drawn.factors, drawn.order)
    if drawn.gray is not None:
        views = ops.grayscale(views, drawn.gray)
    if drawn.sigma is not None:
        views = ops.gaussian_blur(views, drawn.sigma, drawn.kernel_size)
    if drawn.solarized is not None:
        views = ops.solarize(views, drawn.threshold, drawn.solarized)
    return ops.normalize(views, mean, std)
