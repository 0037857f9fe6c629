"""MAE's decoder: visible tokens and mask tokens in, pixels of all patches out."""

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class Decoder(nn.Module):
    """A narrow vision transformer (He et al. 2022, 3): [N, P+k, encoder_dim] -> [N, L, pixels].

    encoder_dim: width of the input tokens; the first `prefix` (P) of them belong to no patch.
    grid: rows and columns of patches, L in all. pixels: values per patch.
    Position embeddings are fixed sines and cosines; prefix tokens have none, as in the reference code.
    """

    positions: Tensor

    def __init__(
        self, encoder_dim: int, prefix: int, grid: tuple[int, int], pixels: int, dim: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.register_buffer("positions", build_sincos2d_pos_embed(list(grid), dim), persistent=False)
        self.blocks = nn.Sequential(*[Block(dim, heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.pixels = nn.Linear(dim, pixels)
        self.apply(_initialise)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Predict the pixels of all patches, [N, L, pixels].

        tokens: [N, P+k, encoder_dim]. visible: int64 [N, k], the patch number of each token after the first P.
        """
        tokens = self.embed(tokens)
        prefix, seen = tokens[:, : self.prefix], tokens[:, self.prefix :]
        masked = self.mask_token.to(seen.dtype).expand(len(seen), *self.positions.shape)
        patches = masked.scatter(1, visible[:, :, None].expand_as(seen), seen) + self.positions
        tokens = self.blocks(torch.cat([prefix, patches], dim=1))
        out: Tensor = self.pixels(self.norm(tokens))[:, self.prefix :]
        return out


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
