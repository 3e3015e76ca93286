"""SAM's image encoder: a ViT with windowed and a few global blocks, and a convolutional neck."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam_ds.modeling.vit import Block, PatchEmbed

from .common import LayerNorm2d


class ImageEncoder(nn.Module):
    """Normalised pictures to picture embeddings.

    Args:
        grid_size: tokens along a side, image side / patch size.
        global_blocks: indices of the blocks that attend over the whole picture instead of in windows.
        out_dim: channels of the embedding.
        drop_path: rate of the last block; it rises linearly from 0 at the first.
        attention: implementation of ``ops.rel_pos_attention``.
    """

    def __init__(
        self,
        grid_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        window_size: int,
        global_blocks: tuple[int, ...],
        out_dim: int,
        drop_path: float = 0.0,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid_size, grid_size, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                mlp_dim,
                grid_size,
                window_size=0 if index in global_blocks else window_size,
                drop_path=drop_path * index / max(depth - 1, 1),
                attention=attention,
            )
            for index in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dim, out_dim, kernel_size=1, bias=False),
            LayerNorm2d(out_dim),
            nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_dim),
        )

    def forward(self, images: Tensor, origin: Tensor | None = None) -> Tensor:
        """[B, 3, S, S] float to [B, out_dim, g, g], in channels-last memory.

        The pictures may be smaller than the model's input; they are then taken for the part of it whose first
        token is ``origin``, int64 [2] (x, y).
        """
        x = self.patch_embed(images)  # [B, g, g, D]
        x = x + crop_grid(self.pos_embed, origin, x.shape[1])
        for block in self.blocks:
            x = block(x)
        return self._neck(x)

    def _neck(self, x: Tensor) -> Tensor:
        """The convolutions want channels second, the norms channels last; both are views of one layout."""
        conv1, norm1, conv2, norm2 = self.neck
        x = norm1(conv1(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        x = norm2(conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x.permute(0, 3, 1, 2)


def crop_grid(grid: Tensor, origin: Tensor | None, side: int) -> Tensor:
    """The square of ``side`` cells at ``origin`` (x, y; None: the first cell) of [1, g, g, D]. No host sync."""
    if origin is None:
        return grid[:, :side, :side]
    cells = torch.arange(side, device=grid.device)
    return grid.index_select(1, origin[1] + cells).index_select(2, origin[0] + cells)
