"""What is fuzzed: how a case is drawn, and what must hold of it. ``test_fuzz`` tries some, ``make fuzz`` millions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import of_config, of_data, of_downstream, of_pictures, of_tars, of_weights


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        weight: its share of the cases of ``make fuzz``; what takes longer gets fewer.
        draw: a case.
        check: whether the case was accepted; it raises if it was in the wrong, or left with another exception than
            the one that is documented.
    """

    name: str
    weight: int
    draw: Callable[[Random], Any]
    check: Callable[[Any], bool]


def targets(folder: Path) -> list[Target]:
    """All of them; ``folder`` is for the files of those that read files."""

    def at(name: str) -> Path:
        (folder / name).mkdir(exist_ok=True)
        return folder / name

    record, sample, index = of_data.Record(), of_data.Sample(), of_tars.IndexFile(at("index"))
    deepspeed, host = of_config.DeepSpeed(at("deepspeed")), of_config.Hosts(at("hosts"))
    recipe, manifest = of_config.RecipeFile(at("recipe")), of_config.Manifests(at("manifest"))
    picture, pictures = of_pictures.Picture(), of_pictures.IndexFile(at("pictures"))
    coco, label_map = of_downstream.CocoJson(at("coco")), of_downstream.LabelMap()
    tar, jpeg, weights = of_tars.Tar(at("tar")), of_data.Jpeg(), of_weights.Weights(at("weights"))
    start, classes = of_weights.Starts(), of_config.Classes(at("classes"))
    return [
        Target("rle", 24, of_data.draw_masks, of_data.check_masks),
        Target("sa1b json", 12, record.draw, record.check),
        Target("sample", 3, sample.draw, sample.check),
        Target("jpeg", 6, jpeg.draw, jpeg.check),
        Target("picture", 4, picture.draw, picture.check),
        Target("coco json", 1, coco.draw, coco.check),
        Target("label map", 4, label_map.draw, label_map.check),
        Target("tar", 10, tar.draw, tar.check),
        Target("index file", 1, index.draw, index.check),
        Target("index of pictures", 1, pictures.draw, pictures.check),
        Target("deepspeed json", 10, deepspeed.draw, deepspeed.check),
        Target("hostfile", 16, host.draw, host.check),
        Target("--set", 10, of_config.draw_settings, of_config.check_settings),
        Target("recipe json", 4, recipe.draw, recipe.check),
        Target("classes json", 1, classes.draw, classes.check),
        Target("manifest", 4, manifest.draw, manifest.check),
        Target("weights", 2, weights.draw, weights.check),
        Target("names and shapes", 4, start.draw, start.check),
    ]


def outcome(target: Target, case: Any) -> tuple[bool, BaseException | None]:
    """Whether a case was accepted, and what went wrong with it."""
    with contextlib.suppress(KeyboardInterrupt):
        try:
            return target.check(case), None
        except Exception as error:
            return False, error
    raise SystemExit(130)
