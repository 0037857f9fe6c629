"""ShuffleNetV2 units that concatenate and shuffle their halves in one pass over memory, whatever the layout."""

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual


class OnePassResidual(InvertedResidual):
    """torchvision's unit, with its parameters and results, in one copy instead of up to four.

    Concatenating two halves and shuffling in two groups alternates their channels (Ma et al. 2018, section 3.2).
    torchvision concatenates, then shuffles channels-first, so channels_last maps are converted there and back.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W']."""
        if self.stride == 1:
            kept, taken = x.chunk(2, dim=1)
            return alternated(kept, self.branch2(taken))
        return alternated(self.branch1(x), self.branch2(x))


def alternated(first: Tensor, second: Tensor) -> Tensor:
    """Interleave the channels of two maps: [N, C, H, W] twice -> [N, 2C, H, W], channels_last if `second` is."""
    if second.is_contiguous(memory_format=torch.channels_last):
        rows = torch.stack((first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1)), dim=-1)
        return rows.flatten(-2).permute(0, 3, 1, 2)
    return torch.stack((first, second), dim=2).flatten(1, 2)


# To torch.fx one operation: it cannot follow the question about the layout.
torch.fx.wrap("alternated")


def shuffle_in_one_pass(net: nn.Module) -> None:
    """Convert all units of a torchvision ShuffleNetV2 to one-pass units, in place; other networks have none."""
    for module in net.modules():
        if type(module) is InvertedResidual:
            module.__class__ = OnePassResidual
