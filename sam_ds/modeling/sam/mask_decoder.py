"""SAM's mask decoder: masks and their predicted IoU from a picture's embedding and embedded prompts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import LayerNorm2d, Mlp3
from .two_way_transformer import TwoWayTransformer

NUM_MASK_TOKENS = 4  # 0: the single mask; 1 to 3: the three masks of an ambiguous prompt


class MaskDecoder(nn.Module):
    """Args: dim, channels of tokens and embedding; the rest as in ``SamConfig``.

    Only the heads of the masks asked for are run. A training step must therefore ask once for the single mask
    and once for the three, if every parameter is to get a gradient.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_dim: int, iou_hidden: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(dim, depth, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_MASK_TOKENS, dim)
        # Run as linear layers on tokens, see _upscale; the layout here is the released SAM's.
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp3(dim, dim, dim // 8) for _ in range(NUM_MASK_TOKENS))
        self.iou_prediction_head = Mlp3(dim, iou_hidden, NUM_MASK_TOKENS)

    def forward(
        self, cells: Tensor, grid_positions: Tensor, prompt_tokens: Tensor, absent: Tensor, multimask: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Predict the masks of O objects.

        Args:
            cells: [O, g * g, D], the picture's embedding plus the dense prompt.
            grid_positions: [g * g, D], their positional encoding.
            prompt_tokens: [O, P, D].
            absent: bool [O, P], the prompt tokens that nothing attends to.
            multimask: True, the three masks; False, the single one; None, the single one and then the three.

        Returns:
            mask logits [O, C, 4g, 4g] and predicted IoU [O, C], C = 3, 1 or 4.
        """
        dtype = self.iou_token.weight.dtype
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])  # [5, D]
        tokens = torch.cat([own.expand(len(cells), -1, -1), prompt_tokens.to(dtype)], dim=1)  # [O, T, D]
        mask = torch.zeros_like(absent, dtype=dtype).masked_fill(absent, float("-inf"))
        mask = F.pad(mask, (len(own), 0))[:, None, None]  # [O, 1, 1, T]
        tokens, cells = self.transformer(tokens, cells.to(dtype), grid_positions.to(dtype), mask)

        chosen = range(0 if multimask is None else int(multimask), 1 if multimask is False else NUM_MASK_TOKENS)
        kernels = [self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen]
        masks = self._masks(torch.stack(kernels, dim=1), self._upscale(cells))
        iou = self.iou_prediction_head(tokens[:, 0])
        return masks, iou[:, chosen.start : chosen.stop]

    def _upscale(self, cells: Tensor) -> Tensor:
        """[O, N, D] to [O, N, 16 * D / 8]: the 4 x 4 pixels of each cell, in the order (y, x) / 2, then (y, x) % 2.

        A transposed convolution whose kernel equals its stride is a linear layer from each cell to its pixels.
        The pixels stay beside their cell, so nothing is moved until there are only C channels left.
        """
        layers: Any = self.output_upscaling
        conv1, norm, gelu, conv2, _ = layers
        x = F.linear(cells, _as_linear(conv1.weight), conv1.bias.repeat(4))
        x = gelu(norm(x.unflatten(-1, (4, -1)))).flatten(2)  # [O, N, 4 * D / 4]
        return gelu(F.linear(x, _on_diagonal(_as_linear(conv2.weight), 4), conv2.bias.repeat(16)))

    def _masks(self, kernels: Tensor, pixels: Tensor) -> Tensor:
        """kernels [O, C, D / 8], pixels [O, N, 16 * D / 8] to logits [O, C, 4g, 4g]."""
        objects, channels, _ = kernels.shape
        grid = round(pixels.shape[1] ** 0.5)
        masks = pixels @ _on_diagonal(kernels, 16).transpose(1, 2)  # [O, N, 16 * C]
        masks = masks.view(objects, grid, grid, 2, 2, 2, 2, channels).permute(0, 7, 1, 3, 5, 2, 4, 6)
        return masks.reshape(objects, channels, 4 * grid, 4 * grid)


def _on_diagonal(matrix: Tensor, count: int) -> Tensor:
    """[..., m, n] to [..., count * m, count * n], the matrix ``count`` times on the diagonal of zeros.

    The same small layer for each of a cell's parts, as one product: products with a few columns are slow.
    """
    places = torch.eye(count, dtype=matrix.dtype, device=matrix.device)[:, None, :, None]  # [count, 1, count, 1]
    return (places * matrix[..., None, :, None, :]).flatten(-2).flatten(-3, -2)


def _as_linear(weight: Tensor) -> Tensor:
    """The weight [in, out, 2, 2] of a transposed convolution as a linear layer's [4 * out, in]."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2)
