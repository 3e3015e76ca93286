"""The simple feature pyramid (ViTDet, arXiv 2203.16527): maps of several scales from the last map of a plain ViT."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from sam_ds.modeling.sam.common import LayerNorm2d

# By how much finer than the ViT's own map a level may be: with patches of 16 pixels, strides of 4, 8, 16 and 32.
SCALES = (4.0, 2.0, 1.0, 0.5)
# Strides of 8, 16 and 32: what detectors with queries look at (RT-DETR; detrex puts DINO on such a pyramid likewise).
DETECTION_SCALES = SCALES[1:]


class ChannelNorm(LayerNorm2d):
    """The norm over channels, of maps with the channels second."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeaturePyramid(nn.Module):
    """Every level is made from the same map: deconvolved or pooled to its scale, then two convolutions with norms.

    Args:
        dim: channels of the ViT.
        out_dim: channels of every level.
        scales: of the levels, some of SCALES.
    """

    def __init__(self, dim: int, out_dim: int, scales: tuple[float, ...] = SCALES) -> None:
        super().__init__()
        # Named by their scale: of another model's weights, no level takes those of another scale.
        self.levels = nn.ModuleDict({str(SCALES.index(scale)): _level(dim, out_dim, scale) for scale in scales})

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """[B, g, g, dim] to one [B, out_dim, scale * g, scale * g] a level."""
        grid = tokens.permute(0, 3, 1, 2)
        return [level(grid) for level in self.levels.values()]


def _level(dim: int, out_dim: int, scale: float) -> nn.Sequential:
    doublings = SCALES[::-1].index(scale) - 1
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if doublings < 0 else []
    widths = [dim >> step for step in range(doublings + 1)]  # each doubling of the side halves the channels
    for step, (wide, narrow) in enumerate(pairwise(widths)):
        layers += [ChannelNorm(wide), nn.GELU()] if step else []
        layers.append(nn.ConvTranspose2d(wide, narrow, kernel_size=2, stride=2))
    last = widths[-1] if widths else dim
    layers += [nn.Conv2d(last, out_dim, kernel_size=1, bias=False), ChannelNorm(out_dim)]
    layers += [nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1, bias=False), ChannelNorm(out_dim)]
    return nn.Sequential(*layers)
