"""A plain ViT with a head that says what a picture shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from sam_ds.modeling.plain_vit import PlainVit

if TYPE_CHECKING:
    from sam_ds.modeling.presets import VitConfig

_HEAD = "head"


class Classifier(PlainVit):
    """The encoder, the mean of its patches' tokens, and a linear layer.

    The mean stands for the picture rather than the class token: it is as good (arXiv 2010.11929, D.3) or better
    (arXiv 2205.01580), and teaches the patches' tokens, which are what a segmenter takes over. The class token stays,
    for patches to read from, and so that weights of any plain ViT load.

    Args:
        config: the sizes.
        drop_path: of the last block.
    """

    def __init__(self, config: VitConfig, num_classes: int, drop_path: float = 0.0) -> None:
        super().__init__(
            config.grid_size,
            config.patch_size,
            config.dim,
            config.depth,
            config.num_heads,
            drop_path,
            learned_positions=True,  # they start as the fixed ones
        )
        self.config = config
        self.head = nn.Linear(config.dim, num_classes)
        self.start_weights()
        nn.init.normal_(self.head.weight, std=0.01)  # at first all classes are about as likely

    def forward(self, images: Tensor) -> Tensor:
        """Normalised pictures [B, 3, S, S] to logits [B, C]."""
        return self.head(self.encode(images)[:, 1:].mean(1))

    def trunk(self) -> nn.Module:
        """All but the head, as one module: the parameters and modules in it are the model's own."""
        trunk = nn.Module()
        for name, parameter in self.named_parameters(recurse=False):
            trunk.register_parameter(name, parameter)
        for name, module in self.named_children():
            if name != _HEAD:
                trunk.add_module(name, module)
        return trunk
