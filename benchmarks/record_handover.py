r"""What a pre-trained encoder is worth: the same SAM, trained as long, from a masked autoencoder and from nothing.

The recipe mae_tiny learns for so many minutes, once; then the recipe tiny is trained from it and from scratch, once for
each seed, which also draws the order of the pictures and the prompts. Alike in all else but what --set-mae sets, as
trained weights want other rates than drawn ones. Both are trained by two ranks with ZeRO-2 and are measured on the
set's own val part, along the way too. Minutes are those of the steps: evaluation and saving are left out. Without
--data, on a few drawn scenes.

  python benchmarks/record_handover.py [--minutes 1] [--steps 60] [--every 30] [--seeds 1] [--no-save]
  python benchmarks/record_handover.py --data ../shared/data/nuclei --minutes 10 --steps 200 --every 100 --seeds 3 \
      --set-mae optim.layer_decay=0.75 --set-mae optim.frozen_encoder_steps=50
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ranks
from common import RESULTS, append_rows
from record_learning import MEASURES, minutes_of, rows_of

from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.tracking import journal
from sam_ds.tracking.journal import read_metrics

_TRIAL = 100  # steps that tell how many come to the minutes that were asked for
_STARTS = ("scratch", "mae")

Row = dict[str, object]


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    for step in dict.fromkeys(row["step"] for row in rows):
        print(f"\nafter {step} steps\n" + markdown([row for row in rows if row["step"] == step]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="pictures with masks, with parts train and val (default: drawn)")
    parser.add_argument("--pictures", type=Path, help="what the autoencoder sees (default: those of --data)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of the autoencoder's training")
    parser.add_argument("--mae", type=Path, help="its run folder, if it is trained already")
    parser.add_argument("--steps", type=int, default=60, help="of SAM's training")
    parser.add_argument("--every", type=int, default=30, help="steps from one evaluation to the next")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change the recipe tiny")
    parser.add_argument("--set-mae", action="append", default=[], metavar="NAME=VALUE", help="where it starts from MAE")
    parser.add_argument("--set-pretrain", action="append", default=[], metavar="NAME=VALUE", help="change mae_tiny")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def measure(args: argparse.Namespace, folder: Path) -> list[Row]:
    """A row for each start, seed and evaluation."""
    data = args.data or folder / "drawn"
    if not args.data:
        synthesize(data, SyntheticConfig(train=64, val=8))
    mae = args.mae or pretrain(folder, args.pictures or data, args.minutes, args.set_pretrain)
    about = {
        "data": data.name,
        "steps": args.steps,
        "settings": " ".join(args.set),
    }
    of_mae = {
        "pictures": (args.pictures or data).name,
        "mae_settings": " ".join(args.set_mae),
        "pretrain_settings": " ".join(args.set_pretrain),
        "mae_steps": rows_of(mae)[-1]["steps"],
        "mae_minutes": round(minutes_of(_metrics(mae)), 1),
    }
    rows = []
    for seed in range(args.seeds):
        for start in _STARTS:
            own = [*args.set_mae, f"model.init={mae.resolve()}"] if start == "mae" else []
            run = folder / f"{start}_{seed}"
            own = [f"seed={seed}", f"train.steps={args.steps}", f"train.eval_every={args.every}", *args.set, *own]
            train(run, "tiny", data, own)
            whose = about | {"start": start, "seed": seed} | (of_mae if start == "mae" else {})
            new = [whose | row for row in evaluations(run)]
            assert new[-1]["step"] == args.steps, "the end of the training is what was measured last"
            if not args.no_save:  # an hour may lie between one and the next
                append_rows(RESULTS / "handover.csv", new)
            rows += new
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def pretrain(folder: Path, pictures: Path, minutes: float, settings: Sequence[str]) -> Path:
    """The run folder of an autoencoder that learns for so long."""
    train(folder / "trial", "mae_tiny", pictures, [f"train.steps={_TRIAL}", "schedule.warmup_steps=10", *settings])
    steps = max(_TRIAL, round(minutes / minutes_of(_metrics(folder / "trial")) * _TRIAL))
    train(folder / "mae", "mae_tiny", pictures, [f"train.steps={steps}", *settings])
    return folder / "mae"


def evaluations(run: Path) -> list[Row]:
    """What was measured while a SAM was trained, but for the untrained one and the baselines."""
    metrics = _metrics(run)
    steps = {int(str(row["model"]).removeprefix("step ")): row for row in rows_of(run) if "step" in str(row["model"])}
    return [
        {"step": step, "minutes": round(minutes_of([report for report in metrics if report["step"] <= step]), 1)}
        | {name: row[name] for name in MEASURES}
        for step, row in steps.items()
    ]


def train(output: Path, recipe: str, data: Path, settings: Sequence[str]) -> None:
    """Train on two ranks."""
    words = ["train", "--recipe", recipe, "--data", str(data.resolve()), "--output", str(output)]
    for setting in ("tracking.mlflow=false", "train.log_every=10", *settings):
        words += ["--set", setting]
    ranks.run("handover_loop.py", {"world": 2, "arguments": words}, output.with_name(f"{output.name}_ranks"))


def _metrics(run: Path) -> list[dict[str, float]]:
    return read_metrics(run / journal.NAME)


def markdown(rows: list[Row]) -> str:
    """Means over the seeds, and how much more a start from a masked autoencoder has: the mean, and each seed's."""
    lines = ["| start | " + " | ".join(MEASURES) + " |", "|" + "---|" * (len(MEASURES) + 1)]
    by_start = {start: [row for row in rows if row["start"] == start] for start in _STARTS}
    for start, own in by_start.items():
        means = [statistics.mean(_numbers(own, name)) for name in MEASURES]
        lines.append(f"| {start} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")
    gains = [
        [mae - scratch for scratch, mae in zip(*(_numbers(by_start[s], name) for s in _STARTS), strict=True)]
        for name in MEASURES
    ]
    cells = [f"{statistics.mean(gain):+.1f} ({', '.join(f'{one:+.1f}' for one in gain)})" for gain in gains]
    return "\n".join([*lines, "| more | " + " | ".join(cells) + " |"])


def _numbers(rows: list[Row], name: str) -> list[float]:
    return [float(str(row[name])) for row in rows]


if __name__ == "__main__":
    main()
