"""What the peer of bench_peer_training.py trains, and on what: the package's modules, and pictures kept in memory."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, on the scale 0 to 255

# What the package takes from torchvision, for its predictor only; it does not declare that it needs it.
_TORCHVISION: dict[str, tuple[str, ...]] = {
    "torchvision": (),
    "torchvision.ops": (),
    "torchvision.ops.boxes": ("batched_nms", "box_area"),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("resize", "to_pil_image"),
}


@dataclass(frozen=True)
class Picture:
    """S is the input's side; h and w are the sides of the part of the loss's grid that shows picture."""

    pixels: Tensor  # uint8 [3, S, S]  zero where padded
    valid: tuple[int, int]  # height and width of the part of the input that shows picture
    truth: Tensor  # bool [O, h, w]
    boxes: Tensor  # float32 [O, 4]  x0 y0 x1 y1 around each mask, in pixels of the input

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + self.truth.nbytes + self.boxes.nbytes


def load_pictures(settings: dict[str, Any], rank: int, world: int) -> list[Picture]:
    """This rank's share of the pictures, decoded and resized."""
    side, grid = settings["model"]["image_size"], settings["grid"]
    stride = loss_stride(settings["recipe"]["loss"]["resolution"], side, grid)
    mine = settings["pictures"][rank::world]
    return [_load(Path(settings["data"]) / stem, masks, side, stride) for stem, masks in mine]


def loss_stride(resolution: str, side: int, grid: int) -> int:
    """Pixels of the input along the side of a pixel of the loss's grid."""
    return 1 if resolution == "input" else side // (4 * grid)


def _load(path: Path, masks: Sequence[int], side: int, stride: int) -> Picture:
    """The longer side becomes ``side``; the rest is padded at the bottom or the right."""
    annotations = json.loads(path.with_suffix(".json").read_text())["annotations"]
    with Image.open(path.with_suffix(".jpg")) as image:
        scale = side / max(image.size)
        source_height, source_width = image.height, image.width
        height, width = (max(1, round(n * scale)) for n in (source_height, source_width))
        shown = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.zeros(3, side, side, dtype=torch.uint8)
    pixels[:, :height, :width] = torch.from_numpy(shown).permute(2, 0, 1)
    rows = _source_places(height, source_height, stride)[:, None]
    columns = _source_places(width, source_width, stride)[None]
    rles = [annotations[i]["segmentation"] for i in masks]
    truth = np.stack([coco_mask.decode(rle)[rows, columns] for rle in rles]).astype(bool)  # [O, h, w]
    boxes = torch.from_numpy(coco_mask.toBbox(rles)).float() * scale  # x0 y0 width height
    boxes[:, 2:] += boxes[:, :2]
    return Picture(pixels, (height, width), torch.from_numpy(truth), boxes)


def _source_places(length: int, source: int, stride: int) -> np.ndarray:
    """The pixel of the source under the middle of each pixel of the loss's grid, along one side."""
    middles = (np.arange(-(-length // stride)) + 0.5) * stride
    return np.minimum(middles * source / length, source - 1).astype(int)


def normalize(batch: Sequence[Picture]) -> Tensor:
    """float32 [B, 3, S, S], zero where padded."""
    images = torch.stack([picture.pixels for picture in batch]).float()
    images = images.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))
    for image, picture in zip(images, batch, strict=True):
        image[:, picture.valid[0] :] = 0
        image[:, :, picture.valid[1] :] = 0
    return images


def build(config: dict[str, Any]) -> nn.Module:
    """The package's Sam of the sizes of our SamConfig."""
    modeling, grid = _modeling(), config["image_size"] // config["patch_size"]
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            depth=config["depth"],
            embed_dim=config["embed_dim"],
            img_size=config["image_size"],
            mlp_ratio=config["mlp_ratio"],
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=config["num_heads"],
            patch_size=config["patch_size"],
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=config["global_blocks"],
            window_size=config["window_size"],
            out_chans=config["prompt_dim"],
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=config["prompt_dim"],
            image_embedding_size=(grid, grid),
            input_image_size=(config["image_size"],) * 2,
            mask_in_chans=config["mask_in_channels"],
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(
                depth=config["decoder_depth"],
                embedding_dim=config["prompt_dim"],
                mlp_dim=config["decoder_mlp_dim"],
                num_heads=config["decoder_heads"],
            ),
            transformer_dim=config["prompt_dim"],
            iou_head_depth=3,
            iou_head_hidden_dim=config["iou_hidden"],
        ),
    )
    sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix *= config["position_scale"]
    return sam


def _modeling() -> ModuleType:
    """segment_anything.modeling, with names in torchvision's place where that is not installed."""
    missing = importlib.util.find_spec("torchvision") is None
    for name, functions in _TORCHVISION.items() if missing else ():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(functions))
    try:
        return importlib.import_module("segment_anything.modeling")
    finally:  # other packages ask whether torchvision is there
        for name in _TORCHVISION if missing else ():
            del sys.modules[name]
