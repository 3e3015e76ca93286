"""Which parameter is trained how: weight decay by rule, learning rate by depth."""

from __future__ import annotations

import re
from typing import Any, Protocol

from torch import nn

from sam_ds.config.schema import OptimConfig

# Learned tables that are looked up, not multiplied with: positions, tokens, label embeddings.
_TABLE = re.compile(
    r"(^|[._])(pos_embed|rel_pos_[hw]|\w*tokens?|no_mask_embed|not_a_point_embed|\w*embeddings?\.\d+)(\.weight)?$"
)


class LayeredTask(Protocol):
    """What grouping needs to know of a task."""

    @property
    def num_layers(self) -> int: ...

    def layer_of(self, name: str) -> int | None: ...


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls on a parameter: on every matrix and kernel, but not on

    - anything with at most one dimension: biases and the gains of every normalisation, whatever it is called;
    - position tables, tokens and embeddings, for which zero is no neutral value.
    """
    return parameter.ndim > 1 and not _TABLE.search(name)


def lr_scale(task: LayeredTask, name: str, layer_decay: float) -> float:
    """The factor on a parameter's learning rate: ``layer_decay`` to the power of its layers below the top.

    Layer 0 is the patch and position embedding, layer i + 1 encoder block i; the neck and all that follows the
    encoder have no layer and learn at the full rate (BEiT's rule, arXiv 2106.08254; used by ViTDet and SAM).
    """
    layer = task.layer_of(name)
    return 1.0 if layer is None else layer_decay ** (task.num_layers - layer)


def param_groups(task: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """AdamW's groups of the trainable parameters of ``task``, in the same order on every rank.

    Each group holds ``params``, ``weight_decay``, ``lr`` and ``lr_scale`` (schedules multiply both), and ``names``.

    Raises:
        ValueError: nothing is trainable.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = lr_scale(task, name, optim.layer_decay)  # type: ignore[arg-type]  # nn.Module with the protocol's methods
        decay = decays(name, parameter)
        group = groups.setdefault(
            (scale, decay),
            {
                "params": [],
                "names": [],
                "weight_decay": optim.weight_decay if decay else 0.0,
                "lr": optim.lr * scale,
                "lr_scale": scale,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ValueError("no parameter of the task is trainable")
    return [groups[key] for key in sorted(groups)]
