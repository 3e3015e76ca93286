"""The plain vision transformer (arXiv 2010.11929): a class token, absolute positions, attention over the whole picture.

Module and parameter names are those of MAE's release and of timm, so their weights load without a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_ds.modeling.sam.sam import PIXEL_MEAN, PIXEL_STD
from sam_ds.modeling.vit import DropPath, PatchEmbed
from sam_ds.ops import constant

_MLP_RATIO = 4  # hidden channels of a block's MLP by its own
_WAVELENGTH = 10_000.0  # the longest of the fixed positions, over 2 pi, in tokens


class PlainAttention(nn.Module):
    """Multi-head attention of every token to every token."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide {dim} channels")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, heads, N, d]
        return self.proj(F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(-2))


class PlainMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, _MLP_RATIO * dim)
        self.fc2 = nn.Linear(_MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PlainBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = PlainAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = PlainMlp(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PlainVit(nn.Module):
    """The encoder. What is trained adds its own layers beside those of it, and a ``forward``: see ``Mae``.

    It has no ``forward`` of its own because the names of the releases are flat: a model with a decoder or a head *is*
    one of these and does not hold one. ZeRO-3 gathers the tokens and positions for ``forward`` only.

    Args:
        grid_size: tokens along a side, image side / patch size.
        drop_path: rate of the last block; it rises linearly from 0 at the first.
        learned_positions: False: sines and cosines that are not trained, in a buffer.
    """

    pos_embed: Tensor

    def __init__(
        self,
        grid_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        drop_path: float = 0.0,
        learned_positions: bool = False,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        positions = sincos_positions(dim, grid_size)
        if learned_positions:
            self.pos_embed = nn.Parameter(positions)
        else:
            self.register_buffer("pos_embed", positions)
        self.blocks = nn.ModuleList(
            PlainBlock(dim, num_heads, drop_path * index / max(depth - 1, 1)) for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def encode(self, images: Tensor, kept: Tensor | None = None, cells: Tensor | None = None) -> Tensor:
        """Normalised pictures [B, 3, S, S] to tokens [B, 1 + N, D] after the last norm, the class token first.

        Args:
            kept: int64 [B, K], the patches that the encoder sees, by their place in the rows of the grid; their
                tokens come back in the same order. None: all of them.
            cells: int64 [B, N], the cells of the grid that the patches of a picture lie in, if it is but a part of the
                model's input. None: it is all of it.
        """
        x = self.patch_embed(images).flatten(1, 2)  # [B, N, D]
        positions = self.pos_embed.to(x.dtype)
        x = x + (positions[:, 1:] if cells is None else positions[0, 1 + cells])
        if kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[-1]))  # [B, K, D]
        first = (self.cls_token + positions[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    @torch.no_grad()
    def start_weights(self) -> None:
        """Draw the weights of this and of what was added to it as MAE's release does.

        Xavier's uniform for matrices and for the patches' convolution as the matrix that it is, zeros for biases.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)


def normalize(images: Tensor) -> Tensor:
    """Standardise pixels: uint8 [B, 3, S, S] to float32."""
    mean, std = (constant(values, images.device).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return (images - mean) / std


def sincos_positions(dim: int, grid_size: int) -> Tensor:
    """float32 [1, 1 + grid_size**2, dim]: fixed positions of a grid's cells in rows, after a zero for the class token.

    A quarter of the channels each: sines of x, cosines of x, then those of y, as in MAE's release.

    Raises:
        ValueError: four do not divide ``dim``.
    """
    if dim % 4:
        raise ValueError(f"fixed positions need a multiple of 4 channels, not {dim}")
    rates = _WAVELENGTH ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * rates  # [g, dim / 4]
    line = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # [g, dim / 2]
    columns, rows = line[None, :].expand(grid_size, -1, -1), line[:, None].expand(-1, grid_size, -1)
    cells = torch.cat([columns, rows], dim=-1).flatten(0, 1)  # [g * g, dim]
    return torch.cat([torch.zeros(1, dim), cells])[None]
