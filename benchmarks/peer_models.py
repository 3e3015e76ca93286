"""What the peers of bench_peer_training.py train: other people's SAM, at the sizes of our SamConfig, behind one face.

A peer is a module with two methods:

  encode      pictures, float32 [B, 3, S, S], normalized; for each what ``decode`` needs of it
  decode      one picture's objects, from what ``encode`` gave, boxes [O, 4] or None, points [O, N, 2] and labels
              [O, N] or None (x, y in pixels of the input; 1 object, 0 background, -1 none), and the last logits
              [O, 1, 4g, 4g] or None: mask logits [O, C, 4g, 4g] and predicted IoU [O, C], of three masks or of one

``bf16`` names the parts that run under autocast: "encoder", "decoder".
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# What the package takes from torchvision, for its predictor only; it does not declare that it needs it.
_TORCHVISION: dict[str, tuple[str, ...]] = {
    "torchvision": (),
    "torchvision.ops": (),
    "torchvision.ops.boxes": ("batched_nms", "box_area"),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("resize", "to_pil_image"),
}


Encoded = tuple[Tensor, ...]


class SegmentAnything(nn.Module):
    """The PyPI package segment-anything: all objects of a picture in one call, coordinates always in fp32."""

    def __init__(self, config: dict[str, Any], bf16: tuple[str, ...]) -> None:
        super().__init__()
        self.sam, self.bf16 = _package(config), bf16

    def encode(self, images: Tensor) -> list[Encoded]:
        with autocast("encoder" in self.bf16):
            embeddings = self.sam.image_encoder(images)  # [B, D, g, g]
        with autocast(False):
            positions = self.sam.prompt_encoder.get_dense_pe()  # [1, D, g, g], once a step
        return [(embedding, positions) for embedding in embeddings.split(1)]

    def decode(
        self,
        encoded: Encoded,
        box: Tensor | None,
        points: Tensor | None,
        labels: Tensor | None,
        logits: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        clicks = None if points is None else (points, labels)
        with autocast(False):
            sparse, dense = self.sam.prompt_encoder(clicks, box, None)
        with autocast("decoder" in self.bf16):
            if logits is not None:
                _, dense = self.sam.prompt_encoder(None, None, logits)
            return self.sam.mask_decoder(*encoded, sparse, dense, multimask)


class Transformers(nn.Module):
    """SAM of Hugging Face's transformers. Its call takes one mask prompt a picture: every object is a picture of its
    own, whose embedding is repeated without a copy. Autocast runs all of a call, as Accelerate has it."""

    def __init__(self, config: dict[str, Any], bf16: tuple[str, ...]) -> None:
        super().__init__()
        from transformers import SamConfig, SamModel

        patches = {"image_size": config["image_size"], "patch_size": config["patch_size"]}
        width = config["prompt_dim"]
        vision = patches | {
            "hidden_size": config["embed_dim"],
            "output_channels": width,
            "num_hidden_layers": config["depth"],
            "num_attention_heads": config["num_heads"],
            "window_size": config["window_size"],
            "global_attn_indexes": list(config["global_blocks"]),
            "mlp_ratio": config["mlp_ratio"],
            "num_pos_feats": width // 2,
            "initializer_range": 0.02,  # its default draws all of the encoder's weights next to zero
        }
        decoder = {
            "hidden_size": width,
            "mlp_dim": config["decoder_mlp_dim"],
            "num_hidden_layers": config["decoder_depth"],
            "num_attention_heads": config["decoder_heads"],
            "iou_head_hidden_dim": config["iou_hidden"],
        }
        prompt = patches | {"hidden_size": width, "mask_input_channels": config["mask_in_channels"]}
        sizes = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
        self.sam, self.bf16 = SamModel(SamConfig(**sizes)), bool(bf16)
        positions = self.sam.shared_image_embedding
        frequencies = positions.positional_embedding.requires_grad_(False)  # elsewhere they are no parameter
        frequencies *= config["position_scale"] / positions.scale

    def encode(self, images: Tensor) -> list[Encoded]:
        with autocast(self.bf16):
            embeddings = self.sam.vision_encoder(images).last_hidden_state  # [B, D, g, g]
        return [(embedding,) for embedding in embeddings.split(1)]

    def decode(
        self,
        encoded: Encoded,
        box: Tensor | None,
        points: Tensor | None,
        labels: Tensor | None,
        logits: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        objects = next(len(x) for x in (box, points) if x is not None)
        with autocast(self.bf16):
            found = self.sam(
                image_embeddings=encoded[0].expand(objects, -1, -1, -1),
                input_boxes=None if box is None else box[:, None],  # [O, 1, 4]
                input_points=None if points is None else points[:, None],  # [O, 1, N, 2]
                input_labels=None if labels is None else labels[:, None].long(),
                input_masks=logits,
                multimask_output=multimask,
            )
        return found.pred_masks[:, 0], found.iou_scores[:, 0]


PEERS = {"segment-anything": SegmentAnything, "transformers": Transformers}


def autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled)


def _package(config: dict[str, Any]) -> nn.Module:
    """The package's Sam."""
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
