"""Memory bank with one row for every image of the data, as in NPID and PIRL."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MemoryBank(nn.Module):
    """Moving averages of all images' embeddings, of unit length (Wu et al. 2018; Misra & van der Maaten 2020).

    They start as random directions, as in the reference code (VISSL, `norm_init`). All state is in buffers and
    nothing synchronises with the device. Updated with rows gathered from all processes, it is the same on all of them.
    """

    rows: Tensor
    """[images, dim], of unit length, float32; row i is m of image i."""
    updates: Tensor
    """Number of updates so far, int64 scalar."""
    last_update: Tensor
    """Number of the update that last changed each row, int64 [images]; 0: the row is still random."""

    def __init__(self, images: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(images, dim), dim=1))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_update", torch.zeros(images, dtype=torch.int64))

    @torch.no_grad()
    def update(self, indices: Tensor, rows: Tensor, momentum: float = 0.5) -> None:
        """m ← momentum·m + (1 - momentum)·row, both of unit length, then normalised to unit length again.

        indices: int64 [n], each image at most once. rows: [n, dim], of any scale.
        """
        new = F.normalize(rows.to(self.rows.dtype), dim=1)
        self.rows[indices] = F.normalize(torch.lerp(new, self.rows[indices], momentum), dim=1)
        self.updates += 1
        self.last_update[indices] = self.updates

    @torch.no_grad()
    def draw(self, count: int) -> Tensor:
        """Draw numbers of `count` different images, at most all, int64 [count]; from torch's global generator."""
        return torch.randperm(len(self.rows), device=self.rows.device)[:count]

    @torch.no_grad()
    def health(self) -> dict[str, Tensor]:
        """Return scalars worth logging.

        bank_visited: share of the rows that were ever updated, 0 to 1; the rest are random.
        bank_age: mean number of updates (optimizer steps) since those rows changed; 0 while there are none.
        """
        visited = self.last_update > 0
        ages = (self.updates - self.last_update) * visited
        return {"bank_visited": visited.float().mean(), "bank_age": ages.sum() / visited.sum().clamp_min(1)}
