"""A vision transformer of any depth, width and patch size."""

from typing import Self

from pydantic import Field, model_validator
from torch import nn

from sslkit.backbones.settings import takes
from sslkit.config.components import BackboneConfig


class ViTConfig(BackboneConfig):
    """Settings of a vision transformer; the defaults are ViT-Ti/16 (Touvron et al. 2021, Table 1)."""

    depth: int = Field(12, ge=1)
    """Number of transformer blocks."""
    heads: int = Field(3, ge=1)
    """Attention heads per block; they divide dim."""
    dim: int = Field(192, ge=1)
    """Width of the tokens and of the features."""
    patch: int = Field(16, ge=1)
    """Height and width of a patch, in pixels; the small stem uses a quarter of it."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Width of a block's hidden layer divided by dim."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout after the position embedding and after each dense layer except q, k and v, as in ViT's B.1."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads={self.heads} does not divide dim={self.dim}; set dim to a multiple of heads")
        return self


@takes(ViTConfig)
def vit(config: ViTConfig, image_size: int = 224) -> nn.Module:
    """Vision transformer of timm with a class token, for any image size (Dosovitskiy et al. 2021).

    Images whose sides are not multiples of the patch size are padded at the right and the bottom with zeros,
    the mean colour.
    """
    from timm.models import VisionTransformer  # Importing timm takes seconds.

    return VisionTransformer(
        img_size=image_size,
        patch_size=config.patch,
        num_classes=0,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        pos_drop_rate=config.dropout,
        proj_drop_rate=config.dropout,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
