"""SAM's image encoder: a ViT with windowed and a few global blocks, and a convolutional neck."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam_ds.modeling.crops import crop_grid
from sam_ds.modeling.vit import Block, PatchEmbed

from .common import LayerNorm2d

if TYPE_CHECKING:
    from sam_ds.modeling.presets import SamConfig


class Trunk(nn.Module):
    """Normalised pictures to the last block's tokens: what other tasks than SAM's build on.

    Args:
        drop_path: rate of the last block; it rises linearly from 0 at the first.
        attention: implementation of ``ops.rel_pos_attention``.
    """

    def __init__(self, config: SamConfig, drop_path: float = 0.0, attention: str = "auto") -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size, config.grid_size, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                config.embed_dim,
                config.num_heads,
                int(config.embed_dim * config.mlp_ratio),
                config.grid_size,
                window_size=0 if index in config.global_blocks else config.window_size,
                drop_path=drop_path * index / max(config.depth - 1, 1),
                attention=attention,
            )
            for index in range(config.depth)
        )

    def forward(self, images: Tensor, origin: Tensor | None = None) -> Tensor:
        """[B, 3, S, S] float to [B, g, g, embed_dim].

        The pictures may be smaller than the model's input; they are then taken for the part of it whose first
        token is ``origin``, int64 [2] (x, y).
        """
        x = self.patch_embed(images)  # [B, g, g, D]
        x = x + crop_grid(self.pos_embed, origin, x.shape[1])
        for block in self.blocks:
            x = block(x)
        return x


class ImageEncoder(Trunk):
    """Normalised pictures to picture embeddings: the trunk, and a neck to the prompts' channels."""

    def __init__(self, config: SamConfig, drop_path: float = 0.0, attention: str = "auto") -> None:
        super().__init__(config, drop_path, attention)
        self.neck = nn.Sequential(
            nn.Conv2d(config.embed_dim, config.prompt_dim, kernel_size=1, bias=False),
            LayerNorm2d(config.prompt_dim),
            nn.Conv2d(config.prompt_dim, config.prompt_dim, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(config.prompt_dim),
        )

    def forward(self, images: Tensor, origin: Tensor | None = None) -> Tensor:
        """[B, 3, S, S] float to [B, prompt_dim, g, g], in channels-last memory; ``origin`` as in the trunk."""
        return self._neck(super().forward(images, origin))

    def _neck(self, x: Tensor) -> Tensor:
        """The convolutions want channels second, the norms channels last; both are views of one layout."""
        conv1, norm1, conv2, norm2 = self.neck
        x = norm1(conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        x = norm2(conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x.permute(0, 3, 1, 2)
