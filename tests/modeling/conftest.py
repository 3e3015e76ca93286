"""Meta's own modules, as the reference the model must agree with."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sam_ds.modeling.presets import SamConfig
from sam_ds.modeling.sam import Sam

# Small, but with everything in it: windows that need padding (10 = 4 + 4 + 2), global blocks, several heads.
SMALL = SamConfig(
    embed_dim=48,
    depth=3,
    num_heads=3,
    global_blocks=(1,),
    image_size=80,
    patch_size=8,
    window_size=4,
    prompt_dim=64,
    decoder_heads=4,
    decoder_mlp_dim=96,
    iou_hidden=32,
)

# What segment_anything imports from torchvision, all for its predictor and mask generator, which are not used here.
TORCHVISION = {
    "torchvision": (),
    "torchvision.ops": (),
    "torchvision.ops.boxes": ("batched_nms", "box_area"),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("resize", "to_pil_image"),
}


@pytest.fixture(scope="session")
def meta() -> ModuleType:
    """The PyPI package segment_anything, which imports torchvision without declaring it."""
    if importlib.util.find_spec("segment_anything") is None:
        pytest.skip("segment-anything is not installed")
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("segment_anything")
    for name, functions in TORCHVISION.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(dict.fromkeys(functions))
    try:
        return importlib.import_module("segment_anything")
    finally:  # other packages ask whether torchvision is there
        for name in TORCHVISION:
            del sys.modules[name]


@pytest.fixture
def meta_sam(meta: ModuleType) -> Callable[[SamConfig], nn.Module]:
    """Build Meta's Sam with our configuration."""
    modeling = importlib.import_module("segment_anything.modeling")

    def build(config: SamConfig) -> nn.Module:
        grid = (config.grid_size, config.grid_size)
        return modeling.Sam(
            image_encoder=modeling.ImageEncoderViT(
                depth=config.depth,
                embed_dim=config.embed_dim,
                img_size=config.image_size,
                mlp_ratio=config.mlp_ratio,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                num_heads=config.num_heads,
                patch_size=config.patch_size,
                qkv_bias=True,
                use_rel_pos=True,
                global_attn_indexes=config.global_blocks,
                window_size=config.window_size,
                out_chans=config.prompt_dim,
            ),
            prompt_encoder=modeling.PromptEncoder(
                embed_dim=config.prompt_dim,
                image_embedding_size=grid,
                input_image_size=(config.image_size, config.image_size),
                mask_in_chans=config.mask_in_channels,
            ),
            mask_decoder=modeling.MaskDecoder(
                num_multimask_outputs=3,
                transformer=modeling.TwoWayTransformer(
                    depth=config.decoder_depth,
                    embedding_dim=config.prompt_dim,
                    mlp_dim=config.decoder_mlp_dim,
                    num_heads=config.decoder_heads,
                ),
                transformer_dim=config.prompt_dim,
                iou_head_depth=3,
                iou_head_hidden_dim=config.iou_hidden,
            ),
        )

    return build


@pytest.fixture
def pair(meta_sam: Callable[[SamConfig], nn.Module]) -> tuple[Sam, nn.Module]:
    """Our small Sam and Meta's with the same weights, every one of them random (also norms and position tables)."""
    torch.manual_seed(0)
    ours, theirs = Sam(SMALL), meta_sam(SMALL)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients by name; one that was not reached counts as zero."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
