"""Mathematical functions with a plain torch definition and, where it pays, a faster way to the same numbers."""

from .cell_attention import gather_cells, update_cells
from .constant import constant
from .rasterize import rasterize
from .rel_pos_attention import rel_pos_attention

__all__ = ["constant", "gather_cells", "rasterize", "rel_pos_attention", "update_cells"]
