"""How much of what tells classes apart an encoder's features hold, without training it: neighbours, and a linear layer.

Features are what the encoder makes of a picture, averaged over it: of a plain ViT the patches' tokens after its last
norm, of SAM's image encoder what its blocks give, before the neck.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam_ds.config.errors import UserError
from sam_ds.evaluation.classes import ClassSums
from sam_ds.modeling.handover import Handover, load_start
from sam_ds.modeling.plain_vit import PlainVit, normalize
from sam_ds.modeling.sam.image_encoder import Trunk
from sam_ds.types import PictureBatch

# DINO's (arXiv 2104.14294, appendix F.1, and eval_knn.py).
NEIGHBOURS, TEMPERATURE = 20, 0.07
_AT_ONCE = 1024  # pictures whose neighbours are looked for together
_STEPS = 1000  # of the linear layer's fit, at most
_NEEDED = {"cls_token", "norm"}  # of a plain ViT: a start may lack them, but features hang on them


class Features(NamedTuple):
    values: Tensor  # float32 [n, D]
    labels: Tensor  # int64 [n]


def load_encoder(model: Any, path: str) -> Handover:
    """Give a model the encoder of a file, as MAE's release has it with or without its decoder.

    What else the file lacks, a decoder, a neck or a head, is not asked for features and stays as it was drawn.

    Raises:
        UserError: as ``load_start``, or the file lacks some of the encoder.
    """
    handover = load_start(model, path)
    if missing := [name for name in handover.new if name.split(".")[0] in _NEEDED]:
        raise UserError(f"{path} lacks {missing[0]}, which features hang on: give a file of the whole encoder")
    return handover


@torch.no_grad()
def extract(model: Any, batches: Iterable[PictureBatch], device: torch.device) -> Features:
    """The features and classes of all pictures, on the host; those that have no class are left out.

    Args:
        model: a plain ViT, or a model with a trunk of SAM's as its ``image_encoder``.

    Raises:
        UserError: no picture could be read.
    """
    values, labels = [], []
    for batch in batches:
        there = batch.labels >= 0
        if there.any():
            values.append(_features(model, normalize(batch.images[there].to(device))).float().cpu())
            labels.append(batch.labels[there])
    if not values:
        raise UserError("no picture could be read: look at what was left out")
    return Features(torch.cat(values), torch.cat(labels))


def _features(model: Any, images: Tensor) -> Tensor:
    """[B, D] of normalised pictures [B, 3, S, S]."""
    if isinstance(model, PlainVit):
        return model.encode(images)[:, 1:].mean(1)
    return Trunk.forward(model.image_encoder, images).mean((1, 2))


def by_neighbours(train: Features, val: Features, num_classes: int) -> ClassSums:
    """DINO's rule: the nearest by cosine vote for their class, each with exp(cosine / temperature)."""
    known, asked = (F.normalize(features.values, dim=1) for features in (train, val))
    sums = torch.zeros(4, dtype=torch.float64)
    for some, labels in zip(asked.split(_AT_ONCE), val.labels.split(_AT_ONCE), strict=True):
        cosines, places = (some @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)  # [b, k]
        votes = torch.zeros(len(some), num_classes)
        votes.scatter_add_(1, train.labels[places], (cosines / TEMPERATURE).exp())
        sums += ClassSums.of(_logs(votes / votes.sum(1, keepdim=True)), labels).to_tensor()
    return ClassSums.from_tensor(sums)


def by_linear_layer(train: Features, val: Features, num_classes: int) -> ClassSums:
    """Multinomial logistic regression on standardised features, with scikit-learn's usual penalty (C = 1)."""
    from sklearn.linear_model import LogisticRegression

    deviation, mean = torch.std_mean(train.values, dim=0)
    known, asked = ((features.values - mean) / (deviation + 1e-6) for features in (train, val))
    fitted = LogisticRegression(max_iter=_STEPS).fit(known.numpy(), train.labels.numpy())
    chances = torch.zeros(len(asked), num_classes)  # of classes that were not seen, none
    chances[:, torch.from_numpy(fitted.classes_)] = torch.from_numpy(fitted.predict_proba(asked.numpy())).float()
    return ClassSums.of(_logs(chances), val.labels)


def _logs(chances: Tensor) -> Tensor:
    """Of a distribution over the classes; one that has no chance is not impossible."""
    return chances.clamp(min=1e-6).log()


def probe(train: Features, val: Features, num_classes: int) -> dict[str, dict[str, float]]:
    """What both rules make of an encoder's features: ``ClassSums.metrics`` of each.

    Raises:
        UserError: the pictures to learn from are all of one class.
    """
    if len(train.labels.unique()) < 2:
        raise UserError("the pictures to learn from are all of one class: take more of them (--max-train)")
    return {
        f"{NEIGHBOURS} neighbours": by_neighbours(train, val, num_classes).metrics(),
        "linear layer": by_linear_layer(train, val, num_classes).metrics(),
    }
