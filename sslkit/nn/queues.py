"""A first-in, first-out queue of embeddings: MoCo's dictionary, NNCLR's support set."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Queue(nn.Module):
    """The newest `size` rows that were pushed, normalised to unit length (He et al. 2020, arXiv:1911.05722, 3.2).

    Until it is full it also holds random directions, as in the reference code. All its state is in
    buffers and no push synchronises with the device. Pushed with rows gathered from all processes, it is the same on
    all of them.
    """

    rows: Tensor
    """[size, D], of unit length, float32; in no guaranteed order."""
    ages: Tensor
    """Number of pushes since each row was pushed, int64 [size]: 0 for the newest."""
    pushed: Tensor
    """Number of rows pushed so far, int64 scalar."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("ages", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Replace the oldest rows by rows [n, D] of any scale, oldest first; of more than `size` only the newest."""
        size = len(self.rows)
        newest = F.normalize(rows[-size:].to(self.rows.dtype), dim=1)
        self.pushed += len(rows)
        slots = (self.pushed - len(newest) + torch.arange(len(newest), device=rows.device)) % size
        self.rows.index_copy_(0, slots, newest)
        self.ages += 1
        self.ages.index_fill_(0, slots, 0)

    @torch.no_grad()
    def health(self) -> dict[str, Tensor]:
        """Return scalars worth logging.

        queue_filled: share of the rows that were pushed, 0 to 1; the rest are random.
        queue_age: mean number of pushes (optimizer steps) since those rows were pushed; 0 while there are none.
        """
        # Slots are filled in order, so the pushed ones come first.
        real = torch.arange(len(self.rows), device=self.rows.device) < self.pushed
        return {
            "queue_filled": real.float().mean(),
            "queue_age": (self.ages * real).sum() / real.sum().clamp_min(1),
        }
