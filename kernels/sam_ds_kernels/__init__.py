"""Triton kernels for training SAM, with a backward for each: they import torch and triton and nothing else of ours."""

from .mask_loss import mask_loss
from .rasterize_runs import rasterize_runs
from .rel_pos_attention_global import rel_pos_attention_global
from .rel_pos_attention_window import rel_pos_attention_window

__all__ = ["mask_loss", "rasterize_runs", "rel_pos_attention_global", "rel_pos_attention_window"]
