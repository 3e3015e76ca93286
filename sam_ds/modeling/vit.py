"""The plain vision transformer's blocks, with windows and decomposed relative positions (ViTDet, arXiv 2203.16527).

Module and parameter names are those of the released SAM, so its weights load without a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    """Multi-head attention over an H x W grid of tokens with relative positions."""

    def __init__(self, dim: int, num_heads: int, grid_size: int, implementation: str = "auto") -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide {dim} channels")
        self.num_heads = num_heads
        self.implementation = implementation
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid_size - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid_size - 1, dim // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same shape."""
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, d]
        rel_h = distances(self.rel_pos_h, height).to(q.dtype)
        rel_w = distances(self.rel_pos_w, width).to(q.dtype)
        out = rel_pos_attention(q, k, v, rel_h, rel_w, (height, width), self.implementation)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, dim))


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
        self.attn = Attention(dim, num_heads, window_size or grid_size, attention)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_dim)
        self.drop_path = DropPath(drop_path)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] to the same shape."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        if self.window_size == 0:
            return self.attn(x)
        # Padding comes after the norm and is not masked: pad tokens are attended, as in the released SAM.
        windows = split_windows(x, self.window_size)
        return join_windows(self.attn(windows), x.shape[1:3])


def split_windows(x: Tensor, size: int) -> Tensor:
    """[B, H, W, D] to [B * windows, size, size, D], zero-padded at the bottom and right to whole windows."""
    pad_h, pad_w = -x.shape[1] % size, -x.shape[2] % size
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # [B, rows, size, columns, size, D]
    return x.transpose(2, 3).flatten(0, 2)


def join_windows(windows: Tensor, grid: torch.Size | tuple[int, int]) -> Tensor:
    """Undo split_windows: [B * windows, size, size, D] to [B, H, W, D] with (H, W) = grid; padding is cut off."""
    height, width = grid
    size = windows.shape[1]
    rows, columns = -(-height // size), -(-width // size)
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)  # [B, rows, size, columns, size, D]
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def distances(table: Tensor, length: int) -> Tensor:
    """Of a table of relative positions [L, d], the middle [2 * length - 1, d]: those met among ``length`` tokens."""
    beyond = (table.shape[0] - (2 * length - 1)) // 2
    return table[beyond : beyond + 2 * length - 1]
