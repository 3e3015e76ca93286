"""Small layers shared by SAM's parts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """SAM's norm over channels. Called, it takes channels-*last* tensors [..., D]."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def channels_first(self, x: Tensor) -> Tensor:
        """The same on [O, D, N]. For a handful of channels: the library's norm is slow on such short rows."""
        wide = x.float()
        centered = wide - wide.mean(1, keepdim=True)
        scale = (centered.square().mean(1, keepdim=True) + self.eps).rsqrt()
        return (centered * scale * self.weight[:, None] + self.bias[:, None]).to(x.dtype)


class Mlp3(nn.Module):
    """Linear layers with ReLU between them; three, as in all of SAM's output heads."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim), nn.Linear(hidden_dim, out_dim)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., out_dim]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
