"""Random numbers for the images of a batch, all from one generator."""

import torch
from torch import Tensor

Probability = float | tuple[float, ...]


class Draws:
    """Uniform numbers and masks for V views of B images, rows in the order of the stacked views.

    A CPU generator also serves images on another device; what it draws is copied there.
    """

    def __init__(self, views: int, images: int, device: torch.device, generator: torch.Generator | None = None) -> None:
        self.views = views
        self.images = images
        self.device = device
        self.generator = generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """[V*B], uniform in [low, high)."""
        return self.table(1, low, high)[:, 0]

    def table(self, columns: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """[V*B, columns], uniform in [low, high)."""
        return self._numbers(columns) * (high - low) + low

    def _numbers(self, columns: int) -> Tensor:
        device = self.device if self.generator is None else self.generator.device
        return torch.rand(self.views * self.images, columns, generator=self.generator, device=device).to(self.device)

    def mask(self, p: Probability) -> Tensor:
        """bool [V*B], true with probability p, or with one probability a view."""
        # Python numbers go along with the kernel launch; a tensor of them would be a copy to the device.
        chances = self.uniform().view(self.views, self.images)
        return torch.cat([row < q for row, q in zip(chances, per_view(p, self.views))])


class PresampledDraws(Draws):
    """Deals out the columns of one table [V*B, ...] that was drawn in one go, from left to right.

    What follows from the numbers is then a pure function of a tensor, which a compiler can take as a whole.
    """

    def __init__(self, views: int, numbers: Tensor) -> None:
        super().__init__(views, len(numbers) // views, numbers.device)
        self.used_columns = 0
        """Columns used so far."""
        self._table = numbers

    def _numbers(self, columns: int) -> Tensor:
        self.used_columns += columns
        return self._table[:, self.used_columns - columns : self.used_columns]


def per_view(p: Probability, views: int) -> tuple[float, ...]:
    """One probability a view."""
    return p if isinstance(p, tuple) else (p,) * views
