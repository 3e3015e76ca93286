"""Mathematical functions with a plain torch definition and, where it pays, a faster way to the same numbers."""

from .rasterize import rasterize
from .rel_pos_attention import rel_pos_attention

__all__ = ["rasterize", "rel_pos_attention"]
