"""Masked autoencoder (arXiv 2111.06377): a plain ViT sees some patches, a small decoder paints the others.

Module and parameter names are those of MAE's release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam_ds.config.errors import UserError
from sam_ds.modeling.crops import check_crop
from sam_ds.modeling.plain_vit import PlainBlock, PlainVit, sincos_positions

if TYPE_CHECKING:
    from sam_ds.config.schema import MaeConfig
    from sam_ds.modeling.presets import VitConfig

_CHANNELS = 3
_SMALL = 1e-6  # added to the variance of a patch


class Patches:
    """Pictures cut into N patches, of which K are seen and M = N - K masked. Pictures are normalised, [B, 3, S, S].

    Args:
        config: the sizes.
        mae: how much is masked, and what is painted.
        crop_size: the side S of the pictures, if they are but a part of the model's input; 0: they are all of it.

    Raises:
        UserError: a ratio that leaves no patch to see, or a crop that the model cannot take.
    """

    def __init__(self, config: VitConfig, mae: MaeConfig, crop_size: int = 0) -> None:
        check_crop(crop_size, config)
        self._size, self._grid = config.patch_size, (crop_size or config.image_size) // config.patch_size
        self._whole = config.grid_size
        self._normalize = mae.normalize_pixels
        self.num = self._grid**2
        self.num_seen = int(self.num * (1 - mae.mask_ratio))  # rounded down, as in the release
        self.values = config.patch_size**2 * _CHANNELS  # of a patch
        if not self.num_seen:
            raise UserError(f"mae.mask_ratio={mae.mask_ratio:g} leaves none of {self.num} patches to see: lower it")

    def cells(self, draws: Tensor) -> Tensor:
        """int64 [B, N]: the cells of the model's grid, in rows, that the patches of pictures lie in.

        Args:
            draws: float32 [B, 2] in [0, 1), where in the room that there is each picture lies, across and down.
        """
        left, top = (draws * (self._whole - self._grid + 1)).long().unbind(1)  # [B]
        along = torch.arange(self._grid, device=draws.device)
        rows, columns = (top[:, None] + along) * self._whole, left[:, None] + along  # [B, g]
        return (rows[:, :, None] + columns[:, None]).flatten(1)

    def targets(self, images: Tensor, order: Tensor) -> Tensor:
        """What is to be painted: float32 [B, M, values], of patches ``order[:, K:]``; order: int64 [B, N]."""
        masked = self.masked(images, order)
        if not self._normalize:
            return masked
        mean, scale = _statistics(masked)
        return (masked - mean) / scale

    def painted(self, images: Tensor, order: Tensor, predictions: Tensor) -> Tensor:
        """The pictures with predictions [B, M, values] in place of the masked patches: float32 [B, 3, S, S].

        Predictions of standardised patches get the true patch's mean and variance, which no model is asked for.
        """
        values = predictions.float()
        if self._normalize:
            mean, scale = _statistics(self.masked(images, order))
            values = values * scale + mean
        return self.joined(self.cut(images).scatter(1, self._places(order), values))

    def masked(self, images: Tensor, order: Tensor) -> Tensor:
        """[B, M, values]: the masked patches as they are."""
        return self.cut(images).gather(1, self._places(order))

    def seen(self, images: Tensor, order: Tensor) -> Tensor:
        """[B, K, values]: the seen patches as they are."""
        return self.cut(images).gather(1, order[:, : self.num_seen, None].expand(-1, -1, self.values))

    def hidden(self, order: Tensor) -> Tensor:
        """bool [B, 3, S, S]: the pixels of the masked patches."""
        shown = torch.zeros(len(order), self.num, self.values, dtype=torch.bool, device=order.device)
        return self.joined(shown.scatter(1, self._places(order), True))

    def _places(self, order: Tensor) -> Tensor:
        return order[:, self.num_seen :, None].expand(-1, -1, self.values)

    def cut(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, N, values]: patches in rows of the grid, in each the pixels in rows, channels last."""
        cells = images.unflatten(3, (self._grid, self._size)).unflatten(2, (self._grid, self._size))
        return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # from [B, 3, g, p, g, p]

    def joined(self, patches: Tensor) -> Tensor:
        """What ``cut`` has cut."""
        cells = patches.unflatten(2, (self._size, self._size, _CHANNELS)).unflatten(1, (self._grid, self._grid))
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # from [B, g, g, p, p, 3]


class Mae(PlainVit):
    """The encoder and the decoder.

    Args:
        config: the sizes.
        mae: how much is masked, and what is painted.
        drop_path: of the encoder's last block.
        crop_size: as of ``Patches``.

    Raises:
        UserError: as ``Patches``.
    """

    decoder_pos_embed: Tensor

    def __init__(self, config: VitConfig, mae: MaeConfig, drop_path: float = 0.0, crop_size: int = 0) -> None:
        super().__init__(config.grid_size, config.patch_size, config.dim, config.depth, config.num_heads, drop_path)
        self.config = config
        self.patches = Patches(config, mae, crop_size)
        dim = config.decoder_dim
        self.decoder_embed = nn.Linear(config.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("decoder_pos_embed", sincos_positions(dim, config.grid_size))
        self.decoder_blocks = nn.ModuleList(PlainBlock(dim, config.decoder_heads) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, self.patches.values)
        self.start_weights()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, order: Tensor, cells: Tensor | None = None) -> Tensor:
        """Paint the masked patches.

        Args:
            images: normalised pictures [B, 3, S, S].
            order: int64 [B, N], the patches in a random order; the first K are seen, the others masked.
            cells: as of ``encode``.

        Returns:
            [B, M, patch * patch * 3] in the weights' type: of patches ``order[:, K:]``, see ``Patches.targets``.
        """
        num, num_seen = self.patches.num, self.patches.num_seen
        seen = self.decoder_embed(self.encode(images, order[:, :num_seen], cells))  # [B, 1 + K, d]
        masked = self.mask_token.expand(len(seen), num - num_seen, -1)
        # The release sorts the tokens back into rows. Attention does not mind the order: positions are sorted instead,
        # which needs no gradient.
        ordered = order if cells is None else cells.gather(1, order)
        places = torch.cat([torch.zeros_like(order[:, :1]), ordered + 1], dim=1)
        x = torch.cat([seen, masked], dim=1) + self.decoder_pos_embed[0].to(seen.dtype)[places]  # [B, 1 + N, d]
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, 1 + num_seen :]))


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch's values, [..., 1]."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + _SMALL).sqrt()
