"""The weights of one model as the start of another: whole SAMs as they are, others by the parts that fit.

A plain ViT is what MAE's release holds (its encoder, with or without its decoder), what timm's files hold, and what
masked autoencoding and classification train here: their names are the same. Into SAM's image encoder goes all that both
have. SAM attends in windows and with relative positions, which start at zero, so at first its blocks do what the plain
ViT's do; it has no class token and no norm after the last block, and a plain ViT has no neck. Other models hold SAM's
encoder, or its trunk, under the same name, and start from either.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_ds.config.errors import UserError
from sam_ds.modeling.convert import Shapes, check_same, read_weights, shapes_of

_ENCODER = "image_encoder."
_PATCHES, _POSITIONS = "patch_embed.proj.weight", "pos_embed"
# What every encoder is made of: a file that lacks some of it, or has it in another shape, is no start.
_TRUNK = re.compile(r"(patch_embed|pos_embed|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.(fc|lin)[12]))(\.|$)")


@dataclass(frozen=True)
class Handover:
    """Which weights of a file a model takes, by the model's own names."""

    source: str  # the file
    taken: dict[str, str]  # as they are: the file's name of each
    resized: dict[str, str]  # likewise, to another grid or another size of patches
    new: tuple[str, ...]  # not in the file: they start as the model draws them
    left: tuple[str, ...]  # the file's names of what the model has no use for

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"{len(self.taken)} weights taken"]
        if self.resized:
            parts.append(f"{len(self.resized)} resized ({', '.join(self.resized)})")
        parts += [f"{len(names)} {word} ({_groups(names)})" for word, names in self._others().items() if names]
        return f"{self.source}: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every name."""
        lists = {word: list(names) for word, names in self._others().items()}
        return {"source": self.source, "taken": self.taken, "resized": self.resized, **lists}

    def _others(self) -> dict[str, tuple[str, ...]]:
        return {"new": self.new, "left": self.left}


def plan(own: Shapes, given: Shapes, source: str) -> Handover:
    """What a model with the state ``own`` takes of a file with the state ``given``. Nothing is loaded.

    The number of heads cannot be told from shapes: it must be the same.

    Raises:
        UserError: one line; the file is of another size, incomplete, or of no kind that is known.
    """
    if _is_sam(own) and _is_sam(given):
        check_same(own, given, source)
        return Handover(source, {name: name for name in own}, {}, (), ())
    _check_size(own, given, source)
    ours, theirs = _prefix(own), _prefix(given)

    def own_name(name: str) -> str:
        if not name.startswith(theirs):  # of no encoder
            return name
        name = name.removeprefix(theirs)
        return ours + (re.sub(r"\.mlp\.fc([12])\.", r".mlp.lin\1.", name) if _has_sam_s_blocks(own) else name)

    names = {own_name(name): name for name in given}
    shared = {mine: name for mine, name in names.items() if mine in own}
    same = {mine: name for mine, name in shared.items() if own[mine] == given[name]}
    resized = {mine: name for mine, name in shared.items() if mine not in same and _can_resize(mine, own, given[name])}
    new = tuple(mine for mine in own if mine not in same and mine not in resized)
    for mine in new:
        if _TRUNK.match(mine.removeprefix(ours)) or (mine in shared and mine.startswith(_ENCODER)):
            has = f"has {list(given[shared[mine]])} for" if mine in shared else "lacks"
            raise UserError(
                f"{source} {has} this model's {mine} {list(own[mine])}: choose the model.preset it was made with, or "
                "another model.init"
            )
    left = tuple(name for mine, name in names.items() if mine not in same and mine not in resized)
    return Handover(source, same, resized, new, left)


def load_start(model: nn.Module, path: str) -> Handover:
    """Give a model the weights of a file that it has a use for; what the file lacks stays as it was drawn.

    Args:
        model: a SAM, a model that holds SAM's encoder or trunk as ``image_encoder``, that trunk, or a plain ViT.

    Raises:
        UserError: as ``plan``, or the file cannot be read.
    """
    weights = read_weights(path)
    own = shapes_of(model.state_dict())
    handover = plan(own, shapes_of(weights), path)
    state = {mine: weights[name] for mine, name in handover.taken.items()}
    for mine, name in handover.resized.items():
        resize = resize_patches if mine.endswith(_PATCHES) else resize_positions
        state[mine] = resize(weights[name], own[mine])
    model.load_state_dict(state, strict=False)
    return handover


def resize_positions(positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Positions of a square grid to those of another, bicubic, as MAE's release does.

    Args:
        positions: [1, g * g, D], or [1, 1 + g * g, D] with that of a class token first.
        shape: of the result: [1, h, h, D] of SAM, or [1, 1 + h * h, D].
    """
    side, beside = _grid(positions.shape[1])
    first, cells = positions.float().split([beside, side * side], dim=1)
    grid = cells.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # [1, D, g, g]
    size = shape[1] if len(shape) == 4 else _grid(shape[1])[0]
    grid = F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return grid if len(shape) == 4 else torch.cat([first, grid.flatten(1, 2)], dim=1)


def resize_patches(kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The patches' convolution [D, 3, p, p] for patches of another size, [D, 3, q, q].

    A patch of q pixels is to give the token that a patch of p pixels gave of the same thing. If B is the bilinear
    resize of a patch, that is <w', B x> = <w, x> for every x, so w' solves B^T w' = w: by the pseudo-inverse exactly
    where patches grow, and by least squares where they shrink (FlexiViT, arXiv 2212.08013, section 3.4). Resizing the
    kernel itself as a picture would scale every token by (q / p)^2, which the norms after it do not undo: the positions
    are added first. B resizes rows and then columns, so its inverse does too.
    """
    before, after = kernel.shape[-1], shape[-1]
    unit = torch.eye(before, dtype=torch.float64)[None, None]
    resize = F.interpolate(unit, (before, after), mode="bilinear", antialias=True)[0, 0]  # B^T of a row: [p, q]
    back = torch.linalg.pinv(resize)  # [q, p]
    return (back @ kernel.double() @ back.T).float()


def _is_sam(names: Shapes) -> bool:
    return _prefix(names) == _ENCODER and any(name.startswith("mask_decoder.") for name in names)


def _prefix(names: Shapes) -> str:
    """What the names of a model's encoder begin with."""
    return _ENCODER if _ENCODER + _PATCHES in names else ""


def _has_sam_s_blocks(names: Shapes) -> bool:
    return f"{_prefix(names)}blocks.0.mlp.lin1.weight" in names


def _check_size(own: Shapes, given: Shapes, source: str) -> None:
    """Raise UserError unless the file holds an encoder of the model's size: else nearly every name or shape differs."""
    theirs, ours = _size(given), _size(own)
    if not all(theirs):
        names = ", ".join(sorted(given)[:3]) or "nothing"
        raise UserError(
            f"{source} holds neither a SAM nor a plain ViT (it has {names}, …): give a .pth or .safetensors of one, or "
            "a run folder"
        )
    if _has_sam_s_blocks(given) and not _has_sam_s_blocks(own):
        raise UserError(f"{source} holds SAM's encoder, and this model starts from a plain ViT, as of MAE")
    if theirs != ours:
        raise UserError(
            f"{source} holds a ViT of width {theirs[0]} and depth {theirs[1]}, and this model has width {ours[0]} and "
            f"depth {ours[1]}: choose the model.preset of that size, or another model.init"
        )


def _size(names: Shapes) -> tuple[int, int]:
    """Width and depth, 0 where there is no encoder."""
    prefix = _prefix(names)
    patches = names.get(prefix + _PATCHES, ())
    blocks = {match[1] for name in names if (match := re.match(rf"{re.escape(prefix)}blocks\.(\d+)\.", name))}
    return patches[0] if len(patches) == 4 else 0, len(blocks)


def _can_resize(name: str, own: Shapes, given: tuple[int, ...]) -> bool:
    """Whether a weight is one of another grid or size of patches, with all else alike."""
    name, mine = name.removeprefix(_ENCODER), own[name]
    if name == _PATCHES:
        return mine[:2] == given[:2] and given[2] == given[3] > 0
    if name != _POSITIONS or len(given) != 3 or given[0] != 1 or mine[-1] != given[-1]:
        return False
    side, beside = _grid(given[1])
    return side > 0 and (beside < 2 if len(mine) == 4 else beside == _grid(mine[1])[1])


def _grid(count: int) -> tuple[int, int]:
    """The side of the square grid that has so many positions, and how many are of no cell: 1 with a class token."""
    side = math.isqrt(count)
    return side, count - side * side


def _groups(names: tuple[str, ...]) -> str:
    """The parts of the model that names belong to, each once: of blocks, what all of them have."""
    split = [name.removeprefix(_ENCODER).split(".") for name in names]
    return ", ".join(
        dict.fromkeys(".".join([first, *rest[1:]]) if first == "blocks" else first for first, *rest in split)
    )
