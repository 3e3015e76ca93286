"""Interactive evaluation: how good is every mask after 1, 2, … simulated clicks, and after a box.

The clicks are those of SAM's own evaluation: the centre of the mask, then the centre of the largest error region
(``prompts.center``), found at the model's input size. The first click asks for three masks, of which the one with
the highest predicted IoU is taken (the best of the three by the truth is reported apart, as "oracle"); later clicks
and the box ask for the single mask. The logits so far are fed back with each click. Masks are measured at the
source picture's size: logits are resized to the input, cut to the valid part, resized to the source, cut at 0.

Every rank encodes each of its batches once, and decodes once a click and chunk of objects. A model whose weights
are spread over the ranks (ZeRO-3) hangs unless they all run the same number: the loader gives them the same number
of batches, and ``largest`` (an all-reduce, maximum) makes them agree on the number of chunks; chunks that a rank
does not have are run with an object that does not count. A model that is whole on every rank needs none of that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from sam_ds.config.schema import EvalConfig
from sam_ds.evaluation.metrics import EvalSums, boundary_f1, iou
from sam_ds.evaluation.source import SourceMask, SourceView, input_point, select, source_mask, source_view
from sam_ds.ops.mask_loss import upsample
from sam_ds.ops.rasterize import rasterize
from sam_ds.prompts.center import correction_center
from sam_ds.prompts.regions import tight_box
from sam_ds.types import BOTTOM_RIGHT, MASKED, PAD, TOP_LEFT, Prediction, Prompts, SegmentBatch

OBJECTS_AT_ONCE = 32  # bounds the decoder's memory: a copy of the embedding an object


class Predictor(Protocol):
    """What is evaluated: a Sam, or a baseline with the same methods."""

    def normalize(self, images: Tensor, valid_sizes: Tensor) -> Tensor: ...
    def encode(self, images: Tensor) -> Tensor: ...
    def decode(self, embeddings: Tensor, picture: Tensor, prompts: Prompts, multimask: bool) -> Prediction: ...


class Watcher(Protocol):
    """Sees some of the objects, to draw them (``pictures.Gallery``)."""

    def wants(self, batch: SegmentBatch) -> set[int]:
        """Which objects of the batch."""
        ...

    def see(self, batch: SegmentBatch, mask: int, truth: Tensor, panels: dict[str, Panel]) -> None:
        """One of them: its truth bool [S, S] and, by title, what the model answered."""
        ...


@dataclass(frozen=True)
class Panel:
    points: Tensor  # float32 [P, 2]
    labels: Tensor  # int64 [P]
    mask: Tensor  # bool [S, S]


@dataclass(frozen=True)
class Chunk:
    """Some objects of a batch. A chunk without objects is padded with one whose ``sources`` entry is None."""

    masks: list[int]  # their places in the batch
    truth: Tensor  # bool [O, S, S]
    inside: Tensor  # bool [O, S, S]  what shows picture
    picture: Tensor  # int64 [O]
    sources: list[SourceMask | None]  # O of them; None does not count

    @property
    def size(self) -> tuple[int, int]:
        return self.truth.shape[1], self.truth.shape[2]


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt."""

    title: str  # "1", "2", … clicks, or "box"
    prompts: Prompts
    candidates: Tensor  # float32 [O, C, h, w]
    chosen: Tensor  # int64 [O]  by predicted IoU

    def best(self) -> Tensor:
        """float32 [O, 1, h, w]: the chosen logits."""
        return self.candidates[torch.arange(len(self.chosen), device=self.chosen.device), self.chosen][:, None]


@torch.no_grad()
def evaluate(
    predictor: Predictor,
    loader: Iterable[SegmentBatch],
    config: EvalConfig,
    device: torch.device | str,
    largest: Callable[[int], int] | None = None,
    watcher: Watcher | None = None,
) -> EvalSums:
    """Measure every mask of the loader.

    Args:
        predictor: put in evaluation mode while this runs, if it is a module.
        loader: batches in host memory, without random transforms: the whole picture fills the valid part.
        device: where the predictor is.
        largest: gives the largest of all ranks' numbers; needed when the predictor's weights are spread over ranks.
        watcher: shown some of the answers.
    """
    sums = EvalSums.zero(config)
    with _evaluating(predictor):
        for batch in loader:
            images = predictor.normalize(batch.images.to(device), batch.valid_sizes.to(device))
            embeddings = predictor.encode(images)  # [B, D, g, g]
            chunks = -(-len(batch.runs) // OBJECTS_AT_ONCE)
            wanted = watcher.wants(batch) if watcher else set()
            for index in range(largest(chunks) if largest else chunks):
                chunk = _chunk(batch, index, device)
                answers = list(_answers(predictor, embeddings, chunk, config))
                sums = _measure(sums, batch, chunk, answers)
                for o, mask in enumerate(chunk.masks):
                    if watcher and mask in wanted:
                        watcher.see(batch, mask, chunk.truth[o].cpu(), _panels(answers, chunk, o))
    return sums


@contextlib.contextmanager
def _evaluating(predictor: Predictor) -> Iterator[None]:
    if not isinstance(predictor, nn.Module):
        yield
        return
    was_training = predictor.training
    predictor.eval()
    try:
        yield
    finally:
        predictor.train(was_training)


def _chunk(batch: SegmentBatch, index: int, device: torch.device | str) -> Chunk:
    """The objects of one chunk, or one object that does not count if the batch has no more."""
    side = batch.images.shape[-1]
    masks = list(range(len(batch.runs)))[index * OBJECTS_AT_ONCE : (index + 1) * OBJECTS_AT_ONCE]
    picture, truth = torch.zeros(1, dtype=torch.int64), torch.zeros(1, side, side, dtype=torch.bool)
    sources: list[SourceMask | None] = [None]
    if masks:
        picture = batch.picture[masks]
        truth = rasterize(select(batch.runs, masks), batch.to_source[picture], (side, side)).bool()
        sources = [source_mask(batch.runs, mask) for mask in masks]
    for o, source in enumerate(sources):
        # A mask may be smaller than an input pixel: a user would click there all the same.
        if source is not None and not truth[o].any():
            x, y = input_point(batch, masks[o], source.box)
            truth[o, y, x] = True
    pixel = torch.arange(side)
    valid = batch.valid_sizes[picture]  # [O, 2]
    inside = (pixel < valid[:, :1])[:, :, None] & (pixel < valid[:, 1:])[:, None, :]
    return Chunk(masks, truth.to(device), inside.to(device), picture.to(device), sources)


def _answers(predictor: Predictor, embeddings: Tensor, chunk: Chunk, config: EvalConfig) -> Iterator[Answer]:
    """The answers that are reported, from prompts that build on each other."""
    side = 4 * embeddings.shape[-1]  # of the logits and of mask prompts
    num_clicks = max(config.clicks, default=0)
    prompts = _no_prompt(len(chunk.truth), num_clicks, side, embeddings.device)
    predicted = torch.zeros_like(chunk.truth)
    for index in range(num_clicks):
        points, labels = correction_center(chunk.truth, predicted)
        prompts = _with_click(prompts, index, points, labels)
        answer = _ask(predictor, embeddings, chunk, prompts, str(index + 1), multimask=index == 0)
        prompts = replace(prompts, masks=answer.best(), has_mask=torch.ones_like(prompts.has_mask))
        predicted = (upsample(answer.best(), chunk.size)[:, 0] > 0) & chunk.inside
        if index + 1 in config.clicks:
            yield answer
    if config.box:
        prompts = _with_box(_no_prompt(len(chunk.truth), 0, side, embeddings.device), tight_box(chunk.truth))
        yield _ask(predictor, embeddings, chunk, prompts, "box", multimask=False)


def _ask(
    predictor: Predictor, embeddings: Tensor, chunk: Chunk, prompts: Prompts, title: str, multimask: bool
) -> Answer:
    prediction = predictor.decode(embeddings, chunk.picture, prompts, multimask)
    return Answer(title, prompts, prediction.masks.float(), prediction.iou.argmax(1))


def _no_prompt(count: int, clicks: int, side: int, device: torch.device) -> Prompts:
    """Room for ``clicks`` points and then two corners, all of it empty."""
    return Prompts(
        points=torch.zeros(count, clicks + 2, 2, device=device),
        labels=torch.full((count, clicks + 2), MASKED, device=device),
        masks=torch.zeros(count, 1, side, side, device=device),
        has_mask=torch.zeros(count, dtype=torch.bool, device=device),
    )


def _with_click(prompts: Prompts, index: int, points: Tensor, labels: Tensor) -> Prompts:
    new_points, new_labels = prompts.points.clone(), prompts.labels.clone()
    new_points[:, index], new_labels[:, index] = points, labels
    new_labels[:, -2] = PAD  # SAM's padding point of every prompt without a box
    return replace(prompts, points=new_points, labels=new_labels)


def _with_box(prompts: Prompts, box: Tensor) -> Prompts:
    corners = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=box.device).expand(len(box), 2)
    return replace(prompts, points=box.view(-1, 2, 2), labels=corners)


def _measure(sums: EvalSums, batch: SegmentBatch, chunk: Chunk, answers: list[Answer]) -> EvalSums:
    """``sums`` with the chunk's objects, at their pictures' own sizes. On the host: these are many small rasters."""
    side = batch.images.shape[-1]
    logits = [answer.candidates.cpu() for answer in answers]
    chosen = [answer.chosen.tolist() for answer in answers]
    views: dict[int, SourceView] = {}
    for o, source in enumerate(chunk.sources):
        if source is None:
            continue
        picture = int(batch.picture[chunk.masks[o]])
        if picture not in views:
            height, width = batch.valid_sizes[picture].tolist()
            grid = (logits[0].shape[-2], logits[0].shape[-1])
            views[picture] = source_view(grid, side, (height, width), source.size)
        values: dict[str, float] = {}
        for answer, masks, best in zip(answers, logits, chosen, strict=True):
            values |= _quality(answer.title, masks[o], best[o], source, views[picture])
        sums = sums.plus(values)
    return sums


def _quality(title: str, logits: Tensor, best: int, source: SourceMask, view: SourceView) -> dict[str, float]:
    """Metrics of one object's candidates [C, h, w]."""
    box = source.box
    predicted = view.box(logits)
    if predicted is not None:
        box = box.joined(predicted)
    box = box.grown(1, source.size)  # a rim, so that the box's edge is not taken for more of the same
    masks, truth = view.cut(logits, box).numpy(), source.cut(box).numpy()
    ious = [iou(mask, truth) for mask in masks]
    values = {f"miou@{title}": ious[best], f"boundary_f1@{title}": boundary_f1(masks[best], truth, source.size)}
    if title == "1":
        values["miou@1/oracle"] = max(ious)
    return values


def _panels(answers: list[Answer], chunk: Chunk, o: int) -> dict[str, Panel]:
    panels = {}
    for answer in answers:
        mask = (upsample(answer.best()[o : o + 1], chunk.size)[0, 0] > 0) & chunk.inside[o]
        panels[answer.title] = Panel(answer.prompts.points[o].cpu(), answer.prompts.labels[o].cpu(), mask.cpu())
    return panels
