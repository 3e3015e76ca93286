"""Promptable segmentation: a batch of pictures with masks becomes a loss through a rollout of prompts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sam_ds.config import curriculum
from sam_ds.config.schema import PromptConfig, Recipe
from sam_ds.losses.objective import RoundLoss, round_loss
from sam_ds.modeling.crops import check_crop
from sam_ds.modeling.presets import build_sam, sam_config
from sam_ds.modeling.sam import MaskDecoder, PromptEncoder
from sam_ds.ops import constant, rasterize
from sam_ds.prompts.draws import object_keys
from sam_ds.prompts.rollout import clickless_round, rollout
from sam_ds.tasks.encoder_tasks import TrunkTask
from sam_ds.types import SegmentBatch


@dataclass(frozen=True)
class SegmentInputs:
    """A batch on the device, ready for ``forward``. S is the pictures' side, H = W that of the loss's grid."""

    images: Tensor  # float32 [B, 3, S, S]  normalised, zero where padded
    picture: Tensor  # int64 [O]
    truth: Tensor  # bool [O, H, W]
    valid: Tensor  # int32 [O, 2]         the part of the loss's grid that shows picture
    weights: Tensor  # float32 [O]          0 for an object that the crop left nothing of
    keys: Tensor  # int64 [O]            of every draw
    clickless: Tensor  # int64 []             the round that adds no point
    origin: Tensor  # int64 [2]            the token (x, y) of the model's input that the pictures start at
    prompts: PromptConfig  # as the curriculum has it

    @property
    def count(self) -> Tensor:
        """How many objects count, a float32 scalar."""
        return self.weights.sum()


class SegmentImages(TrunkTask):
    """SAM, trained the way its paper describes. The trainer knows it by the methods below and of its base."""

    def __init__(self, recipe: Recipe) -> None:
        check_crops(recipe)
        super().__init__(recipe, build_sam(recipe.model))

    def checkpointed(self) -> dict[str, list[nn.Module]]:
        """Modules whose activations may be recomputed: run once a step, and run again in every round."""
        return {"once": self.blocks, "reused": [self.model.mask_decoder]}

    def leaf_modules(self) -> list[type[nn.Module]]:
        """Classes that ZeRO-3 gathers whole: they read their children's weights; the first two run in every round."""
        return [PromptEncoder, MaskDecoder, *super().leaf_modules()]

    @torch.no_grad()
    def prepare(self, batch: SegmentBatch, step: int) -> SegmentInputs:
        """Normalise the pictures and rasterise the masks, where the batch is. ``step`` decides the clickless round."""
        recipe = curriculum.at(self.recipe, step)
        image_side = batch.images.shape[-1]
        stride = 1 if recipe.loss.resolution == "input" else self.model.logits_stride
        side = image_side // stride
        to_source = batch.to_source[batch.picture].clone()  # [O, 2, 3]
        to_source[..., :2] *= stride  # from cells of the loss's grid
        truth = rasterize(batch.runs, to_source, (side, side)).bool()
        clickless = clickless_round(recipe.seed, step, recipe.prompts)
        return SegmentInputs(
            images=self.model.normalize(batch.images, batch.valid_sizes),
            picture=batch.picture,
            truth=truth,
            valid=(-(-batch.valid_sizes // stride))[batch.picture],
            weights=truth.flatten(1).any(1).float(),
            keys=object_keys(recipe.seed, batch.positions[batch.picture], batch.mask_ids),
            clickless=constant([clickless], batch.images.device)[0],
            origin=constant(self._origin(image_side, step), batch.images.device),
            prompts=recipe.prompts,
        )

    def _origin(self, side: int, step: int) -> list[int]:
        """The token at which pictures of ``side`` start, drawn from (seed, step): all ranks share it."""
        config = self.model.config
        room = config.grid_size - side // config.patch_size
        rng = random.Random(f"origin {self.recipe.seed} {step}")
        return [rng.randint(0, room), rng.randint(0, room)]

    def forward(self, inputs: SegmentInputs, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, summed over its objects and divided by ``normalizer``.

        Args:
            normalizer: float scalar, the mean number of objects a micro-batch over all ranks and all
                micro-batches of the step; the mean over them of what comes back is then a mean over objects.

        Returns:
            the loss, and the same sums of its parts for the log: the first and the last round's apart where it matters.
        """
        config, model = self.recipe.loss, self.model
        side = inputs.images.shape[-1]
        logits_side = side // model.logits_stride
        embeddings = model.encode(inputs.images, inputs.origin)  # [B, D, g, g]
        rounds = [
            round_loss(prediction, allowed, inputs.truth, inputs.valid, config)
            for prediction, allowed in rollout(
                partial(model.decode, origin=inputs.origin),
                embeddings,
                inputs.picture,
                inputs.truth,
                _inside(inputs),
                inputs.keys,
                inputs.clickless,
                inputs.prompts,
                model.config.image_size,
                side // inputs.truth.shape[-1],
                (logits_side, logits_side),
            )
        ]
        weights = inputs.weights / normalizer
        total = torch.stack([(weights * r.total).sum() for r in rounds]).sum()
        if config.mean_over_rounds:
            total = total / len(rounds)
        return total, _logs(rounds, weights)


def check_crops(recipe: Recipe) -> None:
    """Raise UserError unless the model can take the crops of every stage of the curriculum."""
    config = sam_config(recipe.model.preset)
    for _, stage in curriculum.stages(recipe):
        check_crop(stage.data.crop_size, config)


def _inside(inputs: SegmentInputs) -> Tensor:
    """bool [O, H, W]: the pixels that show picture."""
    height, width = inputs.truth.shape[-2:]
    rows = torch.arange(height, device=inputs.valid.device) < inputs.valid[:, :1]
    columns = torch.arange(width, device=inputs.valid.device) < inputs.valid[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


@torch.no_grad()
def _logs(rounds: list[RoundLoss], weights: Tensor) -> dict[str, Tensor]:
    def mean(part: str) -> Tensor:
        return sum((weights * getattr(r, part)).sum() for r in rounds) / len(rounds)

    logs = {f"loss/{part}": mean(part) for part in ("focal", "dice", "iou_error")}
    logs["iou/first_round"] = (weights * rounds[0].iou).sum()
    logs["iou/last_round"] = (weights * rounds[-1].iou).sum()
    return logs
