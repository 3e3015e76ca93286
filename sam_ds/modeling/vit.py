"""The plain vision transformer's blocks, with windows and decomposed relative positions (ViTDet, arXiv 2203.16527).

Module and parameter names are those of the released SAM, so its weights load without a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam_ds.ops import rel_pos_attention


class PatchEmbed(nn.Module):
    """Cut a picture into square patches and project each to a token."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] of any float type to [B, S / patch, S / patch, D] of the weights' type."""
        tokens = self.proj(images.to(self.proj.weight.dtype)).permute(0, 2, 3, 1)
        return tokens.contiguous()  # else every later layer would carry the strides along and copy


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drop a whole residual branch of a sample.

    Kept branches are scaled by 1 / (1 - rate), so the expectation does not change.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path must lie in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, ...]; samples are dropped independently, with torch's generator."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) < keep
        return x * (kept / keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Attention(nn.Module):
    """Multi-head attention over a grid of tokens, or in windows of it, with relative positions."""

    def __init__(
        self, dim: int, num_heads: int, grid_size: int, window_size: int = 0, implementation: str = "auto"
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide {dim} channels")
        self.num_heads = num_heads
        self.window_size = window_size
        self.implementation = implementation
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        span = window_size or grid_size
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * span - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * span - 1, dim // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same shape."""
        split = (3, self.num_heads, -1)
        qkv = self.qkv(x).unflatten(-1, split)  # [B, H, W, 3, heads, d]
        height, width = (self.window_size or side for side in x.shape[1:3])
        rel_h = distances(self.rel_pos_h, height).to(qkv.dtype)
        rel_w = distances(self.rel_pos_w, width).to(qkv.dtype)
        # The released SAM pads with zeros between the norm and this layer, which makes its bias of them.
        pad = self.qkv.bias.unflatten(0, split).to(qkv.dtype) if self.window_size else None
        return self.proj(rel_pos_attention(qkv, rel_h, rel_w, pad, self.window_size, self.implementation).flatten(-2))


class Block(nn.Module):
    """Pre-norm transformer block; attention runs in windows unless ``window_size`` is 0."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        grid_size: int,
        window_size: int = 0,
        drop_path: float = 0.0,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, grid_size, window_size, attention)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def distances(table: Tensor, length: int) -> Tensor:
    """Of a table of relative positions [L, d], the middle [2 * length - 1, d]: those met among ``length`` tokens."""
    beyond = (table.shape[0] - (2 * length - 1)) // 2
    return table[beyond : beyond + 2 * length - 1]
