"""One rank of a peer, for bench_peer_training.py: other people's SAM (peer_models.py) in a plain PyTorch loop.

Nothing of ours is imported. What all loops do to be fast:

  data        pictures and masks decoded and resized once, before the clock starts, and kept as tensors at the sizes
              that the encoder and the loss want
  encoder     once a step for all pictures of the rank
  decoder     once a round and picture, with all objects of the picture
  clicks      drawn for all objects of a picture at once: the k-th wrong pixel, found by a running count
  loss        on the part that shows picture; of three masks the best is chosen without a graph, and only it is
              differentiated. The plain form, settings["plain"], takes the losses of all three with a graph and picks
              the lowest, as public loops do
  bfloat16    by autocast with fp32 weights, one cast of each weight a step; losses stay fp32

And the careful one, settings["loop"] "flat":

  gradients   of all parameters in one flat buffer: one all-reduce a step, one norm, one multiplication to clip; a
              parameter that a rank did not use has a gradient of zero, so nothing has to be looked for

  python benchmarks/peer_loop.py SETTINGS.json RESULT.json        (started by ``ranks.run``)
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peer_models import PEERS, Encoded, autocast
from peer_parts import Picture, load_pictures, loss_stride, normalize
from ranks import Meter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

BF16 = {"fp32": (), "bf16": ("encoder", "decoder"), "bf16 encoder": ("encoder",)}  # parts, by precision


def main(settings_path: str, result_path: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # every rank draws the same weights
    peer = PEERS[settings["peer"]](settings["model"], BF16[settings["precision"]]).train()
    pictures = load_pictures(settings, dist.get_rank(), dist.get_world_size())
    rollout = Rollout(peer, settings, torch.Generator().manual_seed(dist.get_rank()))
    loop = LOOPS[settings["loop"]](rollout, settings)
    dist.barrier()
    meter = Meter(settings["warmup"])
    micro = settings["micro_batch"]
    for step in range(settings["warmup"] + settings["steps"]):
        batch = [pictures[i % len(pictures)] for i in range(step * micro, (step + 1) * micro)]
        loss = loop.step(batch)
        assert math.isfinite(loss), f"the loss of step {step} is {loss}"
        meter.lap(sum(len(picture.truth) for picture in batch), loss)
    held = sum(p.pixels.nbytes + p.truth.nbytes + p.boxes.nbytes for p in pictures) / 1e6
    meter.write(result_path, parameters=sum(p.numel() for p in peer.parameters() if p.requires_grad), held_mb=held)
    dist.destroy_process_group()


class Rollout(nn.Module):
    """The loss of a list of pictures, all rounds of it in one forward."""

    def __init__(self, peer: nn.Module, settings: dict[str, Any], generator: torch.Generator) -> None:
        super().__init__()
        recipe = settings["recipe"]
        self.peer, self.generator = peer, generator
        self.size, self.grid, self.plain = settings["model"]["image_size"], settings["grid"], settings["plain"]
        self.loss, self.prompts = recipe["loss"], recipe["prompts"]
        self.rounds = 1 + self.prompts["correction_rounds"]

    def forward(self, batch: list[Picture]) -> Tensor:
        """The mean over objects, summed or meant over rounds as the recipe says."""
        encoded = self.peer.encode(normalize(batch))
        totals = [self._rollout(one, picture) for one, picture in zip(encoded, batch, strict=True)]
        total = torch.stack(totals).sum() / sum(len(picture.truth) for picture in batch)
        return total / self.rounds if self.loss["mean_over_rounds"] else total

    def _rollout(self, encoded: Encoded, picture: Picture) -> Tensor:
        """The losses of all rounds of a picture's objects, summed."""
        box, points, labels = self._first_prompt(picture)
        logits, losses = None, []
        for index in range(self.rounds):
            masks, iou = self.peer.decode(encoded, box, points, labels, logits, multimask=index == 0)
            expected = (len(picture.truth), 3 if index == 0 else 1, self.grid * 4, self.grid * 4)
            assert masks.shape == expected, f"masks of shape {tuple(masks.shape)}, not {expected}"
            fine = partial(self._on_loss_grid, valid=picture.truth.shape[1:])
            loss, wrong = round_loss(masks, iou, picture.truth, fine, self.loss, self.plain)
            losses.append(loss)
            if index + 1 < self.rounds:
                rows = torch.arange(len(masks))
                logits = masks[rows, iou.argmax(1), None].float()  # [O, 1, 4g, 4g], not detached, as ours
                click, label = self._click(wrong, picture.truth)
                points = click if points is None else torch.cat([points, click], 1)
                labels = label if labels is None else torch.cat([labels, label], 1)
        return torch.stack(losses).sum()

    def _first_prompt(self, picture: Picture) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """A noisy box, or points [O, 1, 2] and labels [O, 1]: one kind a picture, because a call takes one."""
        if torch.rand((), generator=self.generator) < self.prompts["point"]:
            return None, *self._click(picture.truth, picture.truth)
        side = (picture.boxes[:, 2:] - picture.boxes[:, :2]).repeat(1, 2)  # [O, 4]
        limit = self.prompts["box_noise_max"] * self.size / 1024
        noise = torch.randn(side.shape, generator=self.generator) * self.prompts["box_noise"] * side
        return picture.boxes + noise.clamp(-limit, limit), None, None

    def _click(self, region: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """A uniformly drawn pixel of each region, bool [O, h, w], as a point [O, 1, 2] of the input and its label.

        Where a region is empty the label is the package's own for no point.
        """
        upto = region.flatten(1).cumsum(1, dtype=torch.int32)  # [O, h * w]
        total = upto[:, -1:]
        k = (torch.rand(total.shape, generator=self.generator) * total).int().clamp(max=total - 1) + 1
        pixel = torch.searchsorted(upto, k).clamp(max=upto.shape[1] - 1)  # [O, 1]: the first with k up to it
        stride, width = self._stride, region.shape[2]
        points = torch.stack([pixel % width, pixel // width], -1).float()  # [O, 1, 2]
        label = truth.flatten(1).gather(1, pixel).float()  # 1: missed object, 0: background taken for it
        return (points + 0.5) * stride - 0.5, torch.where(total > 0, label, -1.0)

    @property
    def _stride(self) -> int:
        """Pixels of the input along the side of a pixel of the loss's grid."""
        return loss_stride(self.loss["resolution"], self.size, self.grid)

    def _on_loss_grid(self, masks: Tensor, valid: tuple[int, int]) -> Tensor:
        """Logits [O, C, 4g, 4g] as float32 [O, C, h, w], without what is no picture."""
        side = self.size // self._stride
        masks = masks.float()
        if masks.shape[-1] != side:
            masks = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
        return masks[..., : valid[0], : valid[1]]


def round_loss(
    masks: Tensor, iou: Tensor, truth: Tensor, fine: Any, config: dict[str, Any], plain: bool
) -> tuple[Tensor, Tensor]:
    """The loss of a round, summed over objects, and where the mask that is fed back is wrong, bool [O, h, w].

    Args:
        masks, iou: [O, C, 4g, 4g] and [O, C]; truth: bool [O, h, w]; fine: from ``masks`` to [O, C, h, w].
        plain: differentiate through the losses of all masks, of which one is picked.
    """
    rows, t = torch.arange(len(masks)), truth[:, None]
    iou = iou.float()
    with torch.set_grad_enabled(plain or masks.shape[1] == 1):
        logits = fine(masks)
        costs = mask_cost(logits, t, config)  # [O, C]
    best, seen = costs.detach().argmin(1), logits.detach() > 0
    lowest = costs[rows, best] if costs.requires_grad else mask_cost(fine(masks[rows, best, None]), t, config)
    shared, union = (seen & t).sum((-2, -1)), (seen | t).sum((-2, -1))  # [O, C]
    actual = torch.where(union > 0, shared / union.clamp(min=1), 1.0)
    squared = (iou - actual) ** 2
    iou_error = squared.mean(1) if config["iou_masks"] == "all" else squared[rows, best]
    loss = lowest.sum() + config["iou"] * iou_error.sum()
    return loss, seen[rows, iou.detach().argmax(1)] ^ truth


def mask_cost(logits: Tensor, truth: Tensor, config: dict[str, Any]) -> Tensor:
    """Weighted focal (Lin et al. 2017) and dice loss (Milletari et al. 2016), [O, C], of logits [O, C, h, w]."""
    t = truth.to(logits.dtype)  # [O, 1, h, w]
    p = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, t.expand_as(logits), reduction="none")
    missing = p + t - 2 * p * t  # of the right class's probability
    gamma = config["focal_gamma"]
    focal = cross_entropy * (missing * missing if gamma == 2 else missing**gamma)
    if config["focal_alpha"] >= 0:
        focal = focal * torch.where(truth, config["focal_alpha"], 1 - config["focal_alpha"])
    dice = 1 - (2 * (p * t).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + t.sum((-2, -1)) + 1)
    return config["focal"] * focal.mean((-2, -1)) + config["dice"] * dice


class FlatLoop:
    """Gradients reduced by hand, in one buffer; the outermost autocast casts a weight once for a whole step."""

    def __init__(self, rollout: Rollout, settings: dict[str, Any]) -> None:
        self.rollout, self.bf16 = rollout, bool(BF16[settings["precision"]])
        self.clip = settings["deepspeed"]["gradient_clipping"]
        self.gradients = flat_gradients(rollout)  # [parameters]
        self.optimizer = adamw(rollout, settings)

    def step(self, batch: list[Picture]) -> float:
        """Returns this rank's loss."""
        self.gradients.zero_()
        with autocast(self.bf16):
            loss = self.rollout(batch)
        loss.backward()
        dist.all_reduce(self.gradients)
        self.gradients /= dist.get_world_size()
        self.gradients *= (self.clip / (self.gradients.norm() + 1e-6)).clamp(max=1)
        self.optimizer.step()
        return float(loss.detach())


class DdpLoop:
    """The loop that Accelerate's guides show, by torch's means: DDP, autocast, clipping, step, gradients set to none.

    Which prompts there are changes from step to step, and with it which parameters have gradients.
    """

    def __init__(self, rollout: Rollout, settings: dict[str, Any]) -> None:
        self.bf16, self.clip = bool(BF16[settings["precision"]]), settings["deepspeed"]["gradient_clipping"]
        self.rollout = DistributedDataParallel(rollout, find_unused_parameters=True)
        self.optimizer = adamw(rollout, settings)

    def step(self, batch: list[Picture]) -> float:
        """Returns this rank's loss."""
        with autocast(self.bf16):
            loss = self.rollout(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.rollout.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


LOOPS = {"flat": FlatLoop, "ddp": DdpLoop}


def adamw(module: nn.Module, settings: dict[str, Any]) -> torch.optim.AdamW:
    optim = settings["recipe"]["optim"]
    return torch.optim.AdamW(
        module.parameters(), optim["lr"], optim["betas"], optim["eps"], optim["weight_decay"], fused=True
    )


def flat_gradients(module: nn.Module) -> Tensor:
    """One buffer that every parameter's ``grad`` is a piece of."""
    parameters = list(module.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters))
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)
    return flat


if __name__ == "__main__":
    main(*sys.argv[1:])
