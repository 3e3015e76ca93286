"""The Segment Anything Model."""

from .image_encoder import ImageEncoder
from .mask_decoder import MaskDecoder
from .prompt_encoder import PromptEncoder
from .sam import Sam

__all__ = ["ImageEncoder", "MaskDecoder", "PromptEncoder", "Sam"]
