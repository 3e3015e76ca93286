"""Masked autoencoder (arXiv 2111.06377): a plain ViT sees some patches, a small decoder paints the others.

Module and parameter names are those of MAE's release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam_ds.config.errors import UserError
from sam_ds.modeling.plain_vit import PlainBlock, PlainVit, sincos_positions

if TYPE_CHECKING:
    from sam_ds.config.schema import MaeConfig
    from sam_ds.modeling.presets import VitConfig

_CHANNELS = 3
_SMALL = 1e-6  # added to the variance of a patch


class Mae(PlainVit):
    """The encoder and the decoder. K of a picture's N patches are seen, M = N - K masked.

    Args:
        config: the sizes.
        mae: how much is masked, and what is painted.
        drop_path: of the encoder's last block.

    Raises:
        UserError: a ratio that leaves no patch to see or none to paint.
    """

    def __init__(self, config: VitConfig, mae: MaeConfig, drop_path: float = 0.0) -> None:
        super().__init__(config.grid_size, config.patch_size, config.dim, config.depth, config.num_heads, drop_path)
        self.config = config
        self.normalize_pixels = mae.normalize_pixels
        self.num_patches = config.grid_size**2
        self.num_seen = num_seen(config, mae)
        dim = config.decoder_dim
        self.decoder_embed = nn.Linear(config.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("decoder_pos_embed", sincos_positions(dim, config.grid_size))
        self.decoder_blocks = nn.ModuleList(PlainBlock(dim, config.decoder_heads) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, config.patch_size**2 * _CHANNELS)
        self.start_weights()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        """Paint the masked patches.

        Args:
            images: normalised pictures [B, 3, S, S].
            order: int64 [B, N], the patches in a random order; the first K are seen, the others masked.

        Returns:
            [B, M, patch * patch * 3] in the weights' type: patches ``order[:, K:]``, as ``targets`` has them.
        """
        seen = self.decoder_embed(self.encode(images, order[:, : self.num_seen]))  # [B, 1 + K, d]
        masked = self.mask_token.expand(len(seen), self.num_patches - self.num_seen, -1)
        # The release sorts the tokens back into rows. Attention does not mind the order: positions are sorted instead,
        # which needs no gradient.
        places = torch.cat([torch.zeros_like(order[:, :1]), order + 1], dim=1)
        x = torch.cat([seen, masked], dim=1) + self.decoder_pos_embed[0].to(seen.dtype)[places]  # [B, 1 + N, d]
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, 1 + self.num_seen :]))

    def targets(self, images: Tensor, order: Tensor) -> Tensor:
        """What ``forward`` is to paint: float32 [B, M, patch * patch * 3]."""
        patches = self.masked_patches(images, order)
        if not self.normalize_pixels:
            return patches
        mean, scale = _statistics(patches)
        return (patches - mean) / scale

    def masked_patches(self, images: Tensor, order: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, M, patch * patch * 3]: the masked patches, pixels in rows, channels last."""
        patches = self.cut(images)
        return patches.gather(1, order[:, self.num_seen :, None].expand(-1, -1, patches.shape[-1]))

    def painted(self, images: Tensor, order: Tensor, predictions: Tensor) -> Tensor:
        """The pictures with the predictions in place of the masked patches: float32 [B, 3, S, S], normalised.

        Predictions of standardised patches get the true patch's mean and variance, which the model is not asked for.
        """
        values = predictions.float()
        if self.normalize_pixels:
            mean, scale = _statistics(self.masked_patches(images, order))
            values = values * scale + mean
        places = order[:, self.num_seen :, None].expand(-1, -1, values.shape[-1])
        return self.joined(self.cut(images).scatter(1, places, values))

    def cut(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, N, patch * patch * 3]: patches in rows of the grid, channels last."""
        size, grid = self.config.patch_size, self.config.grid_size
        cells = images.unflatten(3, (grid, size)).unflatten(2, (grid, size))  # [B, 3, g, p, g, p]
        return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def joined(self, patches: Tensor) -> Tensor:
        """What ``cut`` has cut."""
        size, grid = self.config.patch_size, self.config.grid_size
        cells = patches.unflatten(2, (size, size, _CHANNELS)).unflatten(1, (grid, grid))  # [B, g, g, p, p, 3]
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def num_seen(config: VitConfig, mae: MaeConfig) -> int:
    """Patches of a picture that the encoder sees, rounded down as in the release.

    Raises:
        UserError: it would be none, or all.
    """
    patches = config.grid_size**2
    seen = int(patches * (1 - mae.mask_ratio))
    if not 0 < seen < patches:
        raise UserError(
            f"mae.mask_ratio={mae.mask_ratio:g} leaves {seen} of {patches} patches to see: some must be seen, not all"
        )
    return seen


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch's values, [..., 1]."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + _SMALL).sqrt()
