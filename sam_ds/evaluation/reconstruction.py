"""How well a masked autoencoder paints what it is not shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.evaluation.pictures import enlarged, save_row, titled
from sam_ds.evaluation.tables import table
from sam_ds.modeling.mae import Patches
from sam_ds.modeling.sam.sam import PIXEL_MEAN, PIXEL_STD
from sam_ds.tasks.pretrain_mae import MaeInputs, make_inputs, picture_losses
from sam_ds.types import PictureBatch

# From normalised pictures [B, 3, S, S], the order of their patches [B, N] and the cells that these lie in [B, N] to the
# masked patches [B, M, values].
Painter = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums over pictures. Add those of all ranks (``to_tensor``, all-reduce, ``from_tensor``) before ``metrics``."""

    loss: float = 0.0
    error: float = 0.0  # squared, of the masked pixels on the scale 0 to 1
    count: float = 0.0  # pictures

    def to_tensor(self) -> Tensor:
        """float64 [3]."""
        return torch.tensor([self.loss, self.error, self.count], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> ReconstructionSums:
        return cls(*tensor.cpu().double().tolist())

    def metrics(self) -> dict[str, float]:
        """Means over pictures; "psnr", in dB, is that of the mean squared error.

        Raises:
            UserError: there was no picture.
        """
        if not self.count:
            raise UserError("evaluation: no picture could be read; check the pictures to evaluate on")
        psnr = -10 * math.log10(max(self.error / self.count, 1e-10))
        return {"loss": self.loss / self.count, "psnr": psnr, "pictures": self.count}


class FlatPatches:
    """What a model must beat: every masked patch in one colour.

    Where patches are standardised it is the patch's own mean, which stands for zero; else the mean of the seen pixels.
    """

    def __init__(self, patches: Patches, normalize_pixels: bool) -> None:
        self._patches, self._normalize = patches, normalize_pixels

    def __call__(self, images: Tensor, order: Tensor, cells: Tensor) -> Tensor:
        masked = torch.zeros_like(self._patches.masked(images, order))
        if self._normalize:
            return masked
        seen = self._patches.seen(images, order).unflatten(-1, (-1, images.shape[1]))  # [B, K, pixels, 3]
        return masked + seen.mean((1, 2)).repeat(1, masked.shape[-1] // images.shape[1])[:, None]


@torch.no_grad()
def evaluate(
    painter: Painter,
    batches: Iterable[PictureBatch],
    patches: Patches,
    seed: int,
    device: torch.device,
    gallery: Gallery | None = None,
) -> ReconstructionSums:
    """Paint every picture once, masked as (seed, its place in the set) has it: alike for all models and ranks."""
    sums = ReconstructionSums()
    for batch in batches:
        inputs = make_inputs(batch.to(device), patches, seed)
        predictions = painter(inputs.images, inputs.order, inputs.cells)
        losses = picture_losses(patches, inputs, predictions)
        painted = patches.painted(inputs.images, inputs.order, predictions)
        real = (batch.sample_ids >= 0).to(device)  # the others fill up a rank's last batches
        errors = _errors(patches, inputs, painted)
        sums = replace(
            sums,
            loss=sums.loss + float(losses.double()[real].sum()),
            error=sums.error + float(errors.double()[real].sum()),
            count=sums.count + float(real.sum()),
        )
        if gallery is not None:
            gallery.see(batch, patches, inputs, painted)
    return sums


def _errors(patches: Patches, inputs: MaeInputs, painted: Tensor) -> Tensor:
    """float32 [B]: the mean squared error of each picture's masked pixels on the scale 0 to 1."""
    pixels = [patches.masked(_pixels(images), inputs.order) for images in (inputs.images, painted)]
    return (pixels[0] - pixels[1]).square().mean((1, 2))


def _pixels(images: Tensor) -> Tensor:
    """Normalised pictures [B, 3, S, S] on the scale 0 to 1."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) / 255 for values in (PIXEL_MEAN, PIXEL_STD))
    return (images * std + mean).clamp(0, 1)


class Gallery:
    """Draws the first pictures: as they are, as the model sees them, what it paints, and both together."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Pictures go to ``folder``, at most ``limit`` of them."""
        self.folder, self.limit = folder, limit
        self.paths: list[Path] = []

    def see(self, batch: PictureBatch, patches: Patches, inputs: MaeInputs, painted: Tensor) -> None:
        """Draw what there is room for, and keep the files' paths."""
        chosen = (batch.sample_ids >= 0).nonzero()[: max(0, self.limit - len(self.paths)), 0]
        hidden = patches.hidden(inputs.order)
        for place in chosen.tolist():
            picture, answer, gap = _pixels(inputs.images[place]), _pixels(painted[place]), hidden[place]
            panels = {
                "picture": picture,
                "what is seen": torch.where(gap, 0.5, picture),
                "what is painted": torch.where(gap, answer, 1.0),
                "both": answer,
            }
            self._draw(panels, self.folder / f"{int(batch.sample_ids[place]):08d}.png")

    def _draw(self, panels: dict[str, Tensor], path: Path) -> None:
        drawn = [
            titled(enlarged((pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy()), title)
            for title, pixels in panels.items()
        ]
        self.paths += save_row(drawn, path)


def reconstruction_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of several painters side by side.

    Args:
        columns: a title ("untrained", "step 600") and what ``ReconstructionSums.metrics`` gave.
    """
    rows = {"loss of masked patches": "loss", "PSNR of masked pixels, dB": "psnr"}
    form = {"loss": ".4f", "psnr": ".2f"}
    return table(
        list(columns),
        {label: [f"{values[name]:{form[name]}}" for values in columns.values()] for label, name in rows.items()},
    )
