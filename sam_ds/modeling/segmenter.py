"""A class for every pixel: SAM's trunk, the simple feature pyramid, and a head that adds its levels up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from sam_ds.config.schema import ClassesConfig, ModelConfig
from sam_ds.modeling.feature_pyramid import ChannelNorm, FeaturePyramid
from sam_ds.modeling.handover import load_start
from sam_ds.modeling.presets import sam_config
from sam_ds.modeling.sam.image_encoder import Trunk

if TYPE_CHECKING:
    from sam_ds.modeling.presets import SamConfig


class Segmenter(nn.Module):
    """Normalised pictures to the logits of every class, four to the side of a patch.

    The levels are brought to the finest and added, as in Panoptic FPN's semantic branch (arXiv 1901.02446); the
    pyramid's own convolutions stand in for that branch's.
    """

    def __init__(self, config: SamConfig, num_classes: int, drop_path: float, attention: str) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = Trunk(config, drop_path, attention)
        self.pyramid = FeaturePyramid(config.embed_dim, config.prompt_dim)
        self.mix = nn.Sequential(
            nn.Conv2d(config.prompt_dim, config.prompt_dim, kernel_size=3, padding=1, bias=False),
            ChannelNorm(config.prompt_dim),
            nn.GELU(),
        )
        self.classes = nn.Conv2d(config.prompt_dim, num_classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """float [B, 3, S, S] to float32 [B, num_classes, h, h] with h = S / patch * 4."""
        finest, *coarser = self.pyramid(self.image_encoder(images))
        for level in coarser:
            finest = finest + F.interpolate(level, size=finest.shape[2:], mode="bilinear")
        logits: Tensor = self.classes(self.mix(finest))
        return logits.float()


def build_segmenter(model: ModelConfig, classes: ClassesConfig) -> Segmenter:
    """Build what a recipe asks for. ``model.init`` may name weights for the trunk, and for what
    is alike above it; the rest is new.

    Raises:
        UserError: an unknown preset, or weights that do not fit it.
    """
    segmenter = Segmenter(sam_config(model.preset), classes.num_classes, model.drop_path, model.attention)
    nn.init.trunc_normal_(segmenter.image_encoder.pos_embed, std=0.02)  # as build_sam
    if model.init:
        load_start(segmenter, model.init)
    return segmenter
