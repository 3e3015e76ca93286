"""The sizes of SAM and of the plain ViT that can be built by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from sam_ds.config.errors import UserError, nearest
from sam_ds.config.schema import ClassifyConfig, MaeConfig, ModelConfig
from sam_ds.modeling.classifier import Classifier
from sam_ds.modeling.handover import load_start
from sam_ds.modeling.mae import Mae
from sam_ds.modeling.sam import Sam


@dataclass(frozen=True)
class SamConfig:
    """The shape of a SAM; the defaults are those shared by all released ones."""

    embed_dim: int  # channels of the image encoder
    depth: int  # its blocks
    num_heads: int
    global_blocks: tuple[int, ...]  # blocks without windows
    image_size: int = 1024  # pixels along the side of the square input
    patch_size: int = 16
    window_size: int = 14  # tokens; 0: all blocks are global
    mlp_ratio: float = 4.0
    prompt_dim: int = 256  # channels of embeddings, prompts and decoder
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_hidden: int = 256
    mask_in_channels: int = 16  # channels inside the mask prompt's encoder
    position_scale: float = 1.0  # standard deviation of the positional encoding's random frequencies

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise UserError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def grid_size(self) -> int:
        """Tokens along the input's side; mask logits have four times as many pixels."""
        return self.image_size // self.patch_size


PRESETS: dict[str, SamConfig] = {
    # The released models (segment-anything's build_sam.py).
    "vit_b": SamConfig(embed_dim=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": SamConfig(embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": SamConfig(embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
    # 1.2 billion parameters. Its source gives no widths; 26 heads of 64 suit attention kernels.
    "meta_sam_large": SamConfig(embed_dim=1664, depth=36, num_heads=26, global_blocks=(8, 17, 26, 35)),
    # Trains in minutes on two CPU cores. Small patches, because its pictures are small; few channels in the decoder,
    # which is where the time goes; positions that change fast from patch to patch, because its objects are small.
    "tiny": SamConfig(
        embed_dim=128,
        depth=4,
        num_heads=2,
        global_blocks=(1, 3),
        image_size=512,
        patch_size=8,
        window_size=8,
        prompt_dim=64,
        decoder_heads=4,
        decoder_mlp_dim=256,
        iou_hidden=64,
        position_scale=1.5,
    ),
}
# A quarter of the tokens, for tasks that see whole pictures in every step.
PRESETS["tiny_256"] = replace(PRESETS["tiny"], image_size=256)


@dataclass(frozen=True)
class VitConfig:
    """The shape of a plain ViT, and of the decoder that MAE trains it with; the defaults are MAE's."""

    dim: int  # channels of the encoder
    depth: int  # its blocks
    num_heads: int
    image_size: int = 224  # pixels along the side of the square input
    patch_size: int = 16
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise UserError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def grid_size(self) -> int:
        """Tokens along the input's side."""
        return self.image_size // self.patch_size


VIT_PRESETS: dict[str, VitConfig] = {
    # MAE's release (models_mae.py): ViT-B, ViT-L, and ViT-H, which is released with patches of 14 only.
    "vit_b16": VitConfig(dim=768, depth=12, num_heads=12),
    "vit_l16": VitConfig(dim=1024, depth=24, num_heads=16),
    "vit_h16": VitConfig(dim=1280, depth=32, num_heads=16),
    "vit_h14": VitConfig(dim=1280, depth=32, num_heads=16, patch_size=14),
    # As the image encoders of the SAMs of these names.
    "vit_meta_sam_large": VitConfig(dim=1664, depth=36, num_heads=26),
    "vit_tiny": VitConfig(
        dim=128,
        depth=4,
        num_heads=2,
        image_size=128,
        patch_size=8,
        decoder_dim=64,
        decoder_depth=2,
        decoder_heads=2,
    ),
}
# The grid of the SAM called tiny: what an autoencoder learns of places on it, by crops, needs no stretching.
VIT_PRESETS["vit_tiny_512"] = replace(VIT_PRESETS["vit_tiny"], image_size=512)


def vit_config(preset: str) -> VitConfig:
    """The sizes of a plain ViT. Raises UserError for one that does not exist."""
    if preset not in VIT_PRESETS:
        raise UserError(f"model.preset: there is no plain ViT {preset!r}; {nearest(preset, VIT_PRESETS)}")
    return VIT_PRESETS[preset]


def sam_config(preset: str) -> SamConfig:
    """The sizes of a preset. Raises UserError for one that does not exist."""
    if preset not in PRESETS:
        raise UserError(f"model.preset: there is no {preset!r}; {nearest(preset, PRESETS)}")
    return PRESETS[preset]


def build_sam(model: ModelConfig) -> Sam:
    """Build the SAM a recipe asks for, with fresh weights or those of ``model.init``: a file of a SAM or a plain ViT.

    Weights start as in the released code's modules (relative positions at zero: no bias until one is learnt), but
    for the absolute positions. There zeros are meant to be overwritten by pre-trained ones; with zeros, a model
    trained from scratch could tell places apart only by its borders, so they are drawn as ViT's are.

    Raises:
        UserError: an unknown preset, or weights of another model.
    """
    sam = Sam(sam_config(model.preset), model.drop_path, model.attention)
    nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    if model.position_prior:
        sam.mask_decoder.transformer.start_at_own_place(model.position_prior)
    if model.init:
        load_start(sam, model.init)
    return sam


def build_mae(model: ModelConfig, mae: MaeConfig, crop_size: int = 0) -> Mae:
    """Build the masked autoencoder a recipe asks for, with fresh weights or those of ``model.init``.

    Raises:
        UserError: an unknown preset, a ratio that masks everything, a crop that does not fit, or weights of another
            model.
    """
    built = Mae(vit_config(model.preset), mae, model.drop_path, crop_size)
    if model.init:
        load_start(built, model.init)
    return built


def build_classifier(model: ModelConfig, classify: ClassifyConfig) -> Classifier:
    """Build the classifier a recipe asks for, with fresh weights or those of ``model.init``; its head may stay fresh.

    Raises:
        UserError: an unknown preset, or weights of another model.
    """
    built = Classifier(vit_config(model.preset), classify.num_classes, model.drop_path)
    if model.init:
        load_start(built, model.init)
    return built
