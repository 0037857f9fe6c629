"""MAE: mask most patches of an image and reconstruct them from the few that stay visible."""

from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from timm.models import VisionTransformer
from torch import Tensor, nn

from sslkit.config.task import Fitted, Task
from sslkit.errors import UserError
from sslkit.methods import Batch, Method, RunInfo
from sslkit_mim.decoder import Decoder
from sslkit_mim.pixels import hidden_mean, hidden_mse, patch_pixels


class MAE(Method):
    """Reconstruct the masked three quarters of an image; for vision transformers (He et al. 2022).

    Masked Autoencoders, arXiv:2111.06377: the encoder, which is the backbone itself, sees only the visible
    patches; a narrow decoder, discarded after pre-training, predicts the pixels of the masked ones, normalised per
    patch (Section 3). The encoder's position embeddings are the backbone's own, trainable in timm's networks; the
    paper's are fixed.
    """

    class Config(Method.Config):
        mask_ratio: float = Field(default=0.75, gt=0, lt=1)
        """Share of the patches that is masked."""
        decoder_dim: int = Field(default=512, ge=4)
        """Width of the decoder, a multiple of 4 and of decoder_heads; half of the backbone's usually suffices."""
        decoder_depth: int = Field(default=8, ge=1)
        """Blocks of the decoder; one suffices for fine-tuning, a linear probe benefits from more (Table 1a)."""
        decoder_heads: int = Field(default=16, ge=1)
        """Attention heads of the decoder."""
        norm_pixels: bool = True
        """Predict pixels minus their patch's mean, divided by its standard deviation (Table 1d)."""

        @model_validator(mode="after")
        def _heads_divide(self) -> Self:
            if self.decoder_dim % 4 or self.decoder_dim % self.decoder_heads:
                raise ValueError(
                    f"decoder_dim={self.decoder_dim} must be a multiple of 4 and of decoder_heads={self.decoder_heads}"
                )
            return self

    augment: ClassVar[str] = "mae"
    defaults: ClassVar[dict[str, Any]] = {
        "backbone.name": "vit_tiny",
        "optimizer.name": "adamw",
        "optimizer.lr": 1.5e-4,
        "optimizer.lr_scaling": "linear",
        "optimizer.weight_decay": 0.05,
        "optimizer.betas": (0.9, 0.95),
        "optimizer.warmup_epochs": 40,
    }
    backbone: VisionTransformer

    @classmethod
    def fitted(cls, task: Task) -> dict[str, Fitted]:
        return {
            "backbone.name": Fitted("vit_tiny", "needs a vision transformer"),
            "optimizer.betas": Fitted((0.9, 0.95), "the paper's"),
        }

    def __init__(self, config: Config, backbone: nn.Module, info: RunInfo) -> None:
        # A pooling layer with weights would never be trained here.
        if not isinstance(backbone, VisionTransformer) or backbone.global_pool == "map":
            raise UserError("mae needs a vision transformer; use backbone=vit_tiny")
        super().__init__(config, backbone, info)
        self.patch: int = backbone.patch_embed.patch_size[0]
        side, rest = divmod(info.image_size, self.patch)
        if rest or side < 2:
            raise UserError(
                f"mae hides patches of {self.patch} px, of which {info.image_size} px must be a multiple; "
                "set data.image_size, or backbone.stem=small for smaller patches"
            )
        self.patches = side * side
        self.visible = max(1, round(self.patches * (1 - config.mask_ratio)))
        self.decoder = Decoder(
            encoder_dim=backbone.embed_dim,
            prefix=backbone.num_prefix_tokens,
            grid=(side, side),
            pixels=3 * self.patch**2,
            dim=config.decoder_dim,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = batch.views
        visible = torch.rand(len(views), self.patches, device=views.device).argsort(1)[:, : self.visible]
        predicted = self.decoder(self.encode(views, visible), visible)
        hidden = torch.ones(len(views), self.patches, device=views.device).scatter(1, visible, 0)
        target = patch_pixels(views, self.patch, self.config.norm_pixels)
        loss = hidden_mse(predicted, target, hidden)
        variance = hidden_mse(target, hidden_mean(target, hidden), hidden)
        return {
            "loss": loss,
            "explained_variance": 1 - loss.detach() / variance,
            "masked_share": hidden.mean(),
        }

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Return the backbone's last tokens of prefix and patches `visible`, int64 [N, k]: [N, P+k, width]."""

        def keep(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
            prefix, patches = tokens.tensor_split([self.backbone.num_prefix_tokens], dim=1)
            rows = visible[:, :, None].expand(-1, -1, patches.shape[2])
            return torch.cat([prefix, patches.gather(1, rows)], dim=1)

        # timm drops random patches between position embedding and blocks; this hook drops the masked ones instead.
        handle = self.backbone.patch_drop.register_forward_hook(keep)
        try:
            # Networks with average pooling apply their last norm after it.
            out: Tensor = self.backbone.fc_norm(self.backbone.forward_features(images))
            return out
        finally:
            handle.remove()
