"""Random numbers for the images of a batch, all from one generator."""

import torch
from torch import Tensor

Probability = float | tuple[float, ...]


class Draws:
    """Uniform numbers and masks for V views of B images, rows in the order of the stacked views.

    A CPU generator also serves images on another device; the numbers drawn are copied there.
    """

    def __init__(self, views: int, images: int, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.views = views
        self.images = images
        self.device = device
        self.generator = generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers [V*B], uniform in [low, high)."""
        return self.table(1, low, high)[:, 0]

    def table(self, columns: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers [V*B, columns], uniform in [low, high)."""
        return self._numbers(columns) * (high - low) + low

    def _numbers(self, columns: int) -> Tensor:
        device = self.device if self.generator is None else self.generator.device
        return torch.rand(self.views * self.images, columns, generator=self.generator, device=device).to(self.device)

    def mask(self, p: Probability) -> Tensor:
        """Return bool [V*B], true with probability p, or with one probability per view."""
        # Python numbers are passed with the kernel launch; a tensor of them would be a copy to the device.
        chances = self.uniform().view(self.views, self.images)
        return torch.cat([row < q for row, q in zip(chances, per_view(p, self.views))])


class PresampledDraws(Draws):
    """Hands out the columns of one table [V*B, ...] of numbers drawn in advance, from left to right.

    The parameters are then a pure function of a tensor, which can be compiled as a whole.
    """

    def __init__(self, views: int, numbers: Tensor) -> None:
        super().__init__(views, len(numbers) // views, numbers.device)
        self.used_columns = 0
        """Number of columns used so far."""
        self._table = numbers

    def _numbers(self, columns: int) -> Tensor:
        self.used_columns += columns
        return self._table[:, self.used_columns - columns : self.used_columns]


def per_view(p: Probability, views: int) -> tuple[float, ...]:
    """Return one probability per view."""
    return p if isinstance(p, tuple) else (p,) * views
