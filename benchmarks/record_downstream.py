"""Whether the fine-tunes can learn a few real pictures by heart: detection and semantic segmentation, on a CPU.

Pictures of SA-1B's format are laid out as COCO and as ADE20K are, and the tiny recipes are trained and evaluated on the
same few: average precision of boxes by pycocotools, and mIoU. Rows go to benchmarks/results/downstream.csv, one for
each model or baseline of a run: ``minutes`` is the time the steps took, evaluations and saving not counted.

  python benchmarks/record_downstream.py --data ../shared/data/nuclei [--pictures 8] [--steps 400] [--no-save]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from common import RESULTS, append_rows
from downstream_sets import make_class_maps, make_coco, pictures_of
from record_learning import minutes_of

MEASURES = ("ap", "ap50", "ap75", "miou", "pixel_accuracy")
SETS: dict[str, Callable[[Sequence[Path], Sequence[Path], Path], Path]] = {
    "vitdet_tiny": make_coco,
    "segment_tiny": make_class_maps,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ in SA-1B's format")
    parser.add_argument("--pictures", type=int, default=8, help="how many are learnt, the smallest ones")
    parser.add_argument("--steps", type=int, help="of each training (default: the recipe's)")
    parser.add_argument("--recipe", action="append", choices=list(SETS), help="default: all")
    parser.add_argument("--output", type=Path, help="keep the run folders here")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    chosen = pictures_of(args.data / "train")[: args.pictures]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.recipe or SETS:
            data = SETS[name](chosen, chosen, Path(temporary) / name)
            rows += learn(name, data, (args.output or Path(temporary) / "runs") / name, args.steps)
            print(rows)
    about = {"data": args.data.name, "pictures": len(chosen)}
    if not args.no_save:
        append_rows(RESULTS / "downstream.csv", [about | row for row in rows])


def learn(name: str, data: Path, output: Path, steps: int | None) -> list[dict[str, object]]:
    """Train a recipe in this process; a row for each title of the run's evaluations."""
    from sam_ds.config import deepspeed
    from sam_ds.engine import precision
    from sam_ds.recipes import RECIPES
    from sam_ds.tracking import journal
    from sam_ds.tracking.journal import read_metrics
    from sam_ds.training.loop import train
    from sam_ds.training.run import open_run

    recipe = RECIPES[name]()
    recipe = dataclasses.replace(
        recipe,
        train=dataclasses.replace(recipe.train, steps=steps or recipe.train.steps),
        tracking=dataclasses.replace(recipe.tracking, mlflow=False),
    )
    config = deepspeed.load(precision.local_config())
    run = open_run(recipe, dataclasses.replace(config, accumulation=2), str(data), None, output, "auto")
    try:
        train(run)
    finally:
        run.close()
    minutes = round(minutes_of(read_metrics(output / journal.NAME)), 1)
    return [
        {"recipe": name, "steps": recipe.train.steps, "minutes": minutes, "model": title}
        | {measure: round(100 * values[measure], 1) for measure in MEASURES if measure in values}
        for title, values in run.folder.evaluations().items()
    ]


if __name__ == "__main__":
    main()
