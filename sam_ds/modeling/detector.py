"""Boxes and classes: SAM's trunk, the simple feature pyramid, and the decoder of a library's detector.

The head is RT-DETR's (arXiv 2304.08069) as it is in transformers, without the parts that stand in its way here: the
pyramid is in place of its convolutional encoder, whose batch norms would tie pictures to their rank, and there are no
denoising queries, for which a rank without boxes would leave weights without a gradient. Coordinates are computed in
fp32 whatever the weights' precision: bfloat16 knows the right half of a picture of 1024 pixels in steps of 4.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import RTDetrConfig
from transformers.models.rt_detr.modeling_rt_detr import (
    MultiScaleDeformableAttention,
    RTDetrDecoder,
    RTDetrMLPPredictionHead,
)

from sam_ds.config.schema import DetectConfig, ModelConfig
from sam_ds.modeling.feature_pyramid import DETECTION_SCALES, FeaturePyramid
from sam_ds.modeling.handover import load_start
from sam_ds.modeling.presets import sam_config
from sam_ds.modeling.sam.image_encoder import Trunk

if TYPE_CHECKING:
    from sam_ds.modeling.presets import SamConfig

_ANCHOR_SIDE = 0.05  # of a proposal of the finest level, as a part of the input's side; it doubles from level to level
_MARGIN = 0.01  # how near to the picture's edge a proposal may start; its logit is finite then
_PRIOR = 0.01  # every class's probability at the start (RetinaNet, arXiv 1708.02002): few queries have an object


class Detections(NamedTuple):
    """The answers of all layers, the proposals first and the best last."""

    logits: Tensor  # float32 [B, L, Q, C]
    boxes: Tensor  # float32 [B, L, Q, 4]  centre x and y, width and height, as parts of the input's side


class _Sampling(MultiScaleDeformableAttention):
    """The library's lookup of maps at places, in fp32: a place in bfloat16 is half a cell off."""

    def forward(self, value: Tensor, *shapes: Any) -> Tensor:
        *about, locations, weights, step = shapes
        sampled: Tensor = super().forward(value.float(), *about, locations.float(), weights.float(), step)
        return sampled.to(value.dtype)


class _PositionHead(RTDetrMLPPredictionHead):
    """Takes fp32 coordinates."""

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = super().forward(x.to(self.layers[0].weight.dtype))
        return embedded


class _BoxHead(RTDetrMLPPredictionHead):
    """Gives fp32 changes of coordinates, none at first."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 4, num_layers=3)
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        changes: Tensor = super().forward(x).float()
        return changes


class DetectionHead(nn.Module):
    """Levels of a pyramid to boxes: every cell proposes one, the best are refined layer by layer."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, detect: DetectConfig) -> None:
        super().__init__()
        self.num_queries = detect.num_queries
        self.memory = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.scores = _class_head(dim, detect.num_classes)
        self.boxes = _BoxHead(dim)
        self.decoder = RTDetrDecoder(
            RTDetrConfig(
                d_model=dim,
                decoder_layers=detect.decoder_layers,
                decoder_attention_heads=num_heads,
                decoder_ffn_dim=4 * dim,
                num_feature_levels=num_levels,
            )
        )
        # The library leaves these to be filled in, too.
        layers = range(detect.decoder_layers)
        self.decoder.class_embed = nn.ModuleList(_class_head(dim, detect.num_classes) for _ in layers)
        self.decoder.bbox_embed = nn.ModuleList(_BoxHead(dim) for _ in layers)
        self.decoder.query_pos_head = _PositionHead(4, 2 * dim, dim, num_layers=2)
        for layer in self.decoder.layers:
            layer.encoder_attn.attn = _Sampling()

    def forward(self, levels: list[Tensor]) -> Detections:
        """[B, dim, h, w] a level to the answers of the proposals and of all layers."""
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # [B, N, D]
        memory = self.memory(tokens)
        scores = self.scores(memory).float()  # [B, N, C]
        places = self.boxes(memory) + _anchors(shapes, tokens.device)  # [B, N, 4], logits
        best = scores.detach().amax(-1).topk(self.num_queries, dim=1).indices[..., None]  # [B, Q, 1]
        proposed = places.gather(1, best.expand(-1, -1, 4))
        answers = self.decoder(
            inputs_embeds=memory.gather(1, best.expand(-1, -1, memory.shape[-1])).detach(),
            encoder_hidden_states=tokens,
            reference_points=proposed.detach(),
            spatial_shapes_list=shapes,
        )
        logits = scores.gather(1, best.expand(-1, -1, scores.shape[-1]))
        return Detections(
            logits=torch.cat([logits[:, None], answers.intermediate_logits.float()], dim=1),
            boxes=torch.cat([proposed.sigmoid()[:, None], answers.intermediate_reference_points], dim=1),
        )


def _class_head(dim: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(dim, num_classes)
    nn.init.xavier_uniform_(head.weight)
    nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
    return head


def _anchors(shapes: list[tuple[int, int]], device: torch.device) -> Tensor:
    """float32 [N, 4]: the logits of a square about every cell's centre, larger where cells are."""
    squares = []
    for level, (height, width) in enumerate(shapes):
        y, x = torch.meshgrid(
            (torch.arange(height, device=device) + 0.5) / height,
            (torch.arange(width, device=device) + 0.5) / width,
            indexing="ij",
        )
        side = torch.full_like(x, _ANCHOR_SIDE * 2**level)
        squares.append(torch.stack([x, y, side, side], dim=-1).flatten(0, 1))
    return torch.cat(squares).logit(eps=_MARGIN)


class Detector(nn.Module):
    """Normalised pictures to boxes with classes."""

    def __init__(self, config: SamConfig, detect: DetectConfig, drop_path: float, attention: str) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = Trunk(config, drop_path, attention)
        self.pyramid = FeaturePyramid(config.embed_dim, config.prompt_dim, DETECTION_SCALES)
        self.head = DetectionHead(config.prompt_dim, config.decoder_heads, len(DETECTION_SCALES), detect)

    def forward(self, images: Tensor) -> Detections:
        """float [B, 3, S, S]."""
        found: Detections = self.head(self.pyramid(self.image_encoder(images)))
        return found


def build_detector(model: ModelConfig, detect: DetectConfig) -> Detector:
    """Build what a recipe asks for. ``model.init`` may name weights for the trunk, and for what
    is alike above it; the rest is new.

    Raises:
        UserError: an unknown preset, or weights that do not fit it.
    """
    detector = Detector(sam_config(model.preset), detect, model.drop_path, model.attention)
    nn.init.trunc_normal_(detector.image_encoder.pos_embed, std=0.02)  # as build_sam
    if model.init:
        load_start(detector, model.init)
    return detector
