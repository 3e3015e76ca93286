"""SAM's prompt encoder: points, box corners and a mask become tokens and a map over the picture's grid.

Every kind of prompt goes through the same operations (labels are looked up in one table, the mask branch always
runs, unused parts are chosen away), so all ranks build the same graph whatever they drew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_ds.types import MASKED, PAD, Prompts

from .common import LayerNorm2d


class RandomPositions(nn.Module):
    """Random Fourier features of a place (arXiv 2006.10739). The matrix is a persistent buffer, always float32."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_features: int, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", scale * torch.randn(2, num_features))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RandomPositions:
        """Follow device moves but not dtype casts: the phases reach tens of radians, too much for bfloat16."""
        exact = self.positional_encoding_gaussian_matrix
        super()._apply(fn, recurse)
        moved = self.positional_encoding_gaussian_matrix
        if moved.dtype != exact.dtype:
            self.positional_encoding_gaussian_matrix = exact.to(moved.device)
        return self

    def forward(self, places: Tensor) -> Tensor:
        """[..., 2] places (x, y) in [0, 1] to [..., 2 * num_features] in float32, also under autocast."""
        with torch.autocast(places.device.type, enabled=False):
            matrix = self.positional_encoding_gaussian_matrix.float()
            phases = 2 * math.pi * ((2 * places.float() - 1) @ matrix)
        return torch.cat([phases.sin(), phases.cos()], dim=-1)

    def grid(self, side: int, origin: Tensor | int, size: int) -> Tensor:
        """[side * side, 2 * num_features]: the centres of the cells of a square at ``origin`` (x, y), row by row.

        ``size``: cells along the side of the whole grid.
        """
        device = self.positional_encoding_gaussian_matrix.device
        cells = torch.arange(side, dtype=torch.float32, device=device) + 0.5
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        return self((torch.stack([x, y], dim=-1) + origin) / size).flatten(0, 1)


class PromptEncoder(nn.Module):
    """Args: dim, channels of a token; grid_size, tokens along the picture's side; image_size, pixels along it."""

    def __init__(self, dim: int, grid_size: int, image_size: int, mask_channels: int, position_scale: float) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.image_size = image_size
        self.pe_layer = RandomPositions(dim // 2, position_scale)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        # Run as linear layers on blocks of pixels, see _embed_masks; the layout here is the released SAM's.
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def forward(self, prompts: Prompts, origin: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Embed the prompts of O objects.

        Args:
            origin: int64 [2], the first cell (x, y) of the part of the picture's grid that is shown.

        Returns:
            tokens: [O, P, dim].
            dense: [O, g * g, dim], to be added to the picture's embedding.
            grid_positions: [g * g, dim], the positional encoding of the picture's cells.
        All of the weights' type.
        """
        dtype = self.no_mask_embed.weight.dtype
        start = 0 if origin is None else origin
        points = prompts.points + start * (self.image_size // self.grid_size)
        tokens = self._embed_points(points, prompts.labels).to(dtype)
        dense = self._embed_masks(prompts.masks, prompts.has_mask)
        return tokens, dense, self.pe_layer.grid(prompts.masks.shape[-1] // 4, start, self.grid_size).to(dtype)

    def _embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """[O, P, 2] pixels and [O, P] labels to [O, P, dim] in float32."""
        positions = self.pe_layer((points + 0.5) / self.image_size)
        positions = torch.where((labels > PAD).unsqueeze(-1), positions, 0.0)
        kinds = [self.not_a_point_embed, *self.point_embeddings]  # labels PAD, 0, 1, 2, 3
        table = torch.cat([torch.zeros_like(kinds[0].weight), *(kind.weight for kind in kinds)])
        return positions + F.embedding(labels - MASKED, table).float()

    def _embed_masks(self, masks: Tensor, has_mask: Tensor) -> Tensor:
        """[O, 1, 4g, 4g] logits and [O] bool to [O, g * g, dim].

        The convolutions' kernels do not overlap, so each is a matrix product with 2 x 2 blocks. The blocks of
        both levels are cut at once, while there is a single channel to move; then the rows (channel, sub-block)
        that the second product wants are those the first one leaves.
        """
        layers: Any = self.mask_downscaling
        conv1, norm1, gelu, conv2, norm2, _, conv3 = layers
        chosen = has_mask.view(-1, 1, 1)
        # An absent mask may hold anything, even NaN, which 0 * NaN would carry into the weights' gradients.
        masks = torch.where(chosen, masks.squeeze(1), 0.0).to(conv1.weight.dtype)
        g = masks.shape[-1] // 4
        x = masks.reshape(-1, g, 2, 2, g, 2, 2).permute(0, 3, 6, 2, 5, 1, 4)  # [O, 2, 2 (pixel), 2, 2 (block), g, g]
        x = conv1.weight.flatten(1) @ x.reshape(-1, 4, 4 * g * g) + conv1.bias[:, None]
        x = gelu(norm1.channels_first(x)).unflatten(2, (4, g * g)).flatten(1, 2)  # [O, mask_channels / 4 * 4, g * g]
        x = conv2.weight.flatten(1) @ x + conv2.bias[:, None]
        x = gelu(norm2.channels_first(x))  # [O, mask_channels, g * g]
        # The last bias is a row of ones against it: one product and no pass to add it. Each object has weights of
        # its own, zeros and no_mask_embed where there is no mask.
        weight = torch.where(chosen, conv3.weight.flatten(1).t(), 0.0)  # [O, mask_channels, dim]
        bias = torch.where(chosen, conv3.bias, self.no_mask_embed.weight)  # [O, 1, dim]
        rows = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        return rows.transpose(1, 2) @ torch.cat([weight, bias], dim=1).to(rows.dtype)
