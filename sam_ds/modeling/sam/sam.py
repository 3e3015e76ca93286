"""The Segment Anything Model (arXiv 2304.02643), batched over objects of several pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam_ds.ops import constant
from sam_ds.types import MASKED, Prediction, Prompts

from .image_encoder import ImageEncoder
from .mask_decoder import MaskDecoder
from .prompt_encoder import PromptEncoder

if TYPE_CHECKING:
    from sam_ds.modeling.presets import SamConfig

# ImageNet's mean and standard deviation on the scale 0 to 255.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder; ``encode`` once a picture, ``decode`` once a round.

    Weights may be of any float type: each part casts what it is given to its own.
    """

    def __init__(self, config: SamConfig, drop_path: float = 0.0, attention: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config, drop_path, attention)
        self.prompt_encoder = PromptEncoder(
            config.prompt_dim, config.grid_size, config.image_size, config.mask_in_channels, config.position_scale
        )
        self.mask_decoder = MaskDecoder(
            config.prompt_dim, config.decoder_depth, config.decoder_heads, config.decoder_mlp_dim, config.iou_hidden
        )

    @property
    def logits_stride(self) -> int:
        """Pixels of the input along the side of a pixel of mask logits and mask prompts."""
        return self.config.patch_size // 4

    def normalize(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        """As ``normalize``."""
        return normalize(images, valid_sizes)

    def encode(self, images: Tensor, origin: Tensor | None = None) -> Tensor:
        """Normalised pictures [B, 3, S, S] to embeddings [B, D, g, g].

        The pictures may be crops, smaller than the model's input: g is then smaller too, and ``origin``, int64 [2]
        (x, y), the token of the input's grid that they start at.
        """
        return self.image_encoder(images, origin)

    def decode(
        self,
        embeddings: Tensor,
        picture: Tensor,
        prompts: Prompts,
        multimask: bool | None,
        origin: Tensor | None = None,
    ) -> Prediction:
        """Predict the masks of O objects of B pictures.

        Args:
            embeddings: [B, D, g, g] from ``encode``.
            picture: int64 [O], which picture each object lies in.
            prompts: one prompt an object.
            multimask: True, three masks (tokens 1 to 3); False, the single one (token 0); None, all four in
                order. Only the heads asked for run, so only they and the shared weights get gradients.
            origin: as for ``encode``; prompts are in pixels of the crop.
        """
        tokens, dense, grid_positions = self.prompt_encoder(prompts, origin)
        cells = embeddings.flatten(2).transpose(1, 2).to(dense.dtype)  # [B, g * g, D], a view
        cells = cells.index_select(0, picture) + dense
        masks, iou = self.mask_decoder(cells, grid_positions, tokens, prompts.labels == MASKED, multimask)
        return Prediction(masks=masks, iou=iou)


def normalize(images: Tensor, valid_sizes: Tensor) -> Tensor:
    """Standardise pixels and blank what is not picture.

    Args:
        images: uint8 [B, 3, S, S].
        valid_sizes: [B, 2], height and width of the top-left part that shows picture.

    Returns:
        float32 [B, 3, S, S], zero outside the valid part (blanked after standardising, as in SAM).
    """
    mean, std = (constant(values, images.device).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    pixels = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (pixels < valid_sizes.unsqueeze(-1)).unbind(1)  # each [B, S]
    valid = rows[:, None, :, None] & columns[:, None, None, :]  # [B, 1, S, S]
    return torch.where(valid, (images - mean) / std, 0.0)
