"""Small layers shared by SAM's parts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """SAM's channel norm, here on channels-*last* tensors [..., D]: the same numbers without strided means."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)


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
