"""Training SAM on two ranks of a CPU: ours beside what a user would pick instead.

Both train a SAM of the same sizes on the same pictures, with as many objects a picture, rounds a step and pictures a
global batch, on two processes of one thread each. What is counted is (object, round) pairs a second: an object goes
through the prompt encoder, the mask decoder and the loss once a round. Memory is the most that was resident, from the
start of the process on (DeepSpeed's import is part of ours), summed over the processes.

  ours    the engine (DeepSpeed, ZeRO-2, gloo), the training loader and the task of a real training: the loader reads
          and decodes the JPEG and the JSON of every step (in the training process, unless --workers), the task draws
          the masks, all objects of all pictures go through the decoder together
  peer    the modules of the PyPI package segment-anything in a careful plain PyTorch loop; gradients reduced as one
          flat buffer over gloo. Pictures and masks lie ready in memory, decoded and resized before the clock starts;
          peer_loop.py lists what else it does to be fast

Both: the first prompt is a point or a box (the peer's: one kind a picture), later ones a pixel drawn from the error and
the last mask's logits; three masks in the first round and the best of them trained, one mask later; focal, dice and
IoU losses with the recipe's weights; one backward for all rounds; clipping and fused AdamW. No augmentation but in
the crops.

  input       fp32, the loss on the input's grid
  logits      fp32, the loss on the logits' grid
  bf16        ours in DeepSpeed's bf16, the peer under autocast (encoder and decoder, or the encoder alone: the
              faster), the loss on the logits' grid
  best        the fastest of all that was measured of each, but with the loss on the logits' grid
  ddp         the package's modules in torch's DDP, loss on the logits' grid
  hf          SAM of Hugging Face's transformers in the loop that Accelerate's guides show (DDP, autocast)
  hf bf16     the same in bfloat16
  eager       ours with fused ops beside ours with the ops as public code writes them: attention with its whole score
              matrix, losses by autograd, masks drawn pixel by pixel
  crops       ours as the tiny recipe trains in most of its steps, augmented crops of 128 pixels in batches of 8, beside
              the peer's fastest: the package's encoder takes inputs of one size. Less work a pair, so not alike

On a processor without products in bfloat16 what needs them is left out, and ours in crops is in fp32 too.

``plain`` is the peer as public loops are: the losses of all masks have a graph, of which one is picked.

Without --variants ours is measured beside what a user would pick instead: bf16, ddp, hf, hf bf16, and eager.

Every measurement is made in fresh processes, and the cases take turns, so a busy machine is busy for all of them.
--cpu-time takes the ratios from the CPU time of the processes instead of the clock; both rates are always saved.

  python benchmarks/bench_peer_training.py [--repeats 2] [--steps 2] [--image-size 512] [--variants …] [--no-save]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ranks
from common import RESULTS, ROOT, append_rows
from peer_figures import WORLD, Figures, compare, figures, report, show

from sam_ds.config import deepspeed, recipe_file
from sam_ds.config.schema import CurriculumConfig, Recipe, TransformConfig
from sam_ds.data.index import Index, open_index
from sam_ds.data.reader import Reader
from sam_ds.data.samples import usable_masks
from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.engine.precision import cpu_multiplies
from sam_ds.modeling.presets import PRESETS
from sam_ds.recipes.tiny import tiny


@dataclasses.dataclass(frozen=True)
class Case:
    precision: str
    resolution: str  # of the loss
    script: str = "peer_loop.py"
    peer: str = "segment-anything"  # one of peer_models.PEERS
    loop: str = "flat"  # one of peer_loop.LOOPS
    plain: bool = False  # the peer differentiates through the losses of all masks
    ops: str = ""  # ours: which implementations, as SAM_DS_OPS has them; empty: the fastest
    crop: int = 0  # ours trains on crops of this side instead of whole inputs


OURS = "engine_loop.py"
EAGER = "rel_pos_attention=reference,mask_loss=reference,rasterize=reference"
CASES = {
    "ours input": Case("fp32", "input", OURS),
    "peer input": Case("fp32", "input"),
    "peer input plain": Case("fp32", "input", plain=True),
    "ours logits": Case("fp32", "logits", OURS),
    "peer logits": Case("fp32", "logits"),
    "peer logits plain": Case("fp32", "logits", plain=True),
    "ours bf16": Case("bf16", "logits", OURS),
    "peer bf16": Case("bf16", "logits"),
    "peer bf16 encoder": Case("bf16 encoder", "logits"),
    "peer logits ddp": Case("fp32", "logits", loop="ddp"),
    "hf logits": Case("fp32", "logits", peer="transformers", loop="ddp"),
    "hf bf16": Case("bf16", "logits", peer="transformers", loop="ddp"),
    "ours logits eager": Case("fp32", "logits", OURS, ops=EAGER),
    "ours crops": Case("bf16" if cpu_multiplies("bf16") else "fp32", "logits", OURS, crop=128),
}
# Variant: the cases of ours and of the peer; the fastest of each is taken.
VARIANTS = {
    "input": (["ours input"], ["peer input"]),
    "input, plain": (["ours input"], ["peer input plain"]),
    "logits": (["ours logits"], ["peer logits"]),
    "logits, plain": (["ours logits"], ["peer logits plain"]),
    "bf16": (["ours bf16"], ["peer bf16", "peer bf16 encoder"]),
    "best": (["ours logits", "ours bf16"], ["peer logits", "peer bf16", "peer bf16 encoder"]),
    "ddp": (["ours logits"], ["peer logits ddp"]),
    "hf": (["ours logits"], ["hf logits"]),
    "hf bf16": (["ours bf16"], ["hf bf16"]),
    "eager": (["ours logits"], ["ours logits eager"]),
    "crops": (["ours crops"], ["peer logits", "peer bf16", "peer bf16 encoder"]),
}
_USUAL = ["bf16", "ddp", "hf", "hf bf16", "eager"]


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        pictures, source = choose_pictures(args, Path(folder) / "data")
        of_variants = {variant: sides for variant in args.variants if all(sides := runnable(variant))}
        wanted = {name for sides in of_variants.values() for side in sides for name in side}
        cases = {name: case for name, case in CASES.items() if name in wanted}
        runs: dict[str, list[Figures]] = {name: [] for name in cases}
        for turn in range(args.repeats):
            for name, case in cases.items():
                settings = make_settings(args, case, pictures, Path(folder) / "data")
                results = ranks.run(case.script, settings, Path(folder) / f"{turn} {name}")
                runs[name].append(figures(results, args.rounds))
                objects = {sum(step) for step in zip(*(result["objects"] for result in results), strict=True)}
                assert case.crop or objects == {WORLD * args.pictures * args.masks}, f"{objects} objects a step"
                show(name, turn, runs[name][-1])
    assert len({run.parameters for case in runs.values() for run in case}) == 1, "the models are of different sizes"
    rows = [{"data": source, **compare(variant, sides, runs, args)} for variant, sides in of_variants.items()]
    report(rows, args)
    if not args.no_save:
        append_rows(RESULTS / "peer_training.csv", rows)


def runnable(variant: str) -> tuple[list[str], ...]:
    """A variant's cases but for those in bfloat16 on a processor without it, which would take hours."""
    fast = {name for name, case in CASES.items() if case.precision == "fp32" or cpu_multiplies("bf16")}
    return tuple([name for name in side if name in fast] for side in VARIANTS[variant])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="runs of every case; the medians are reported")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a run; the median counts")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--image-size", type=int, default=512, help="side of the input")
    parser.add_argument("--masks", type=int, default=16, help="objects a picture")
    parser.add_argument("--pictures", type=int, default=1, help="pictures a rank and step")
    parser.add_argument("--rounds", type=int, default=4, help="of prompts a step")
    parser.add_argument("--pool", type=int, default=16, help="different pictures")
    parser.add_argument("--workers", type=int, default=0, help="loader processes a rank of ours; 0: none")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=_USUAL, help="usual: " + ", ".join(_USUAL))
    parser.add_argument("--cpu-time", action="store_true", help="ratios of CPU time instead of the clock's")
    parser.add_argument("--no-save", action="store_true", help="do not add to benchmarks/results/peer_training.csv")
    return parser.parse_args()


def choose_pictures(args: argparse.Namespace, folder: Path) -> tuple[list[tuple[str, list[int]]], str]:
    """Copy pictures that have enough masks to ``folder``, and index it.

    Returns:
        the name of each without its extension with the masks that the peer takes, and what pictures they are.
    """
    index, source = _source(folder.parent / "synthetic")
    recipe = make_recipe(args, CASES["ours input"])
    reader, chosen = Reader(index), []
    folder.mkdir()
    for sample in random.Random(0).sample(range(len(index)), len(index)):
        raw = reader.read(sample)
        masks = usable_masks(raw, recipe.data).ids.tolist()
        if len(masks) < args.masks or len(chosen) == args.pool:
            continue
        stem = Path(index.name(sample)).stem
        image = {"image_id": sample, "height": raw.size[0], "width": raw.size[1], "file_name": f"{stem}.jpg"}
        (folder / f"{stem}.jpg").write_bytes(raw.jpeg)
        (folder / f"{stem}.json").write_text(json.dumps({"image": image, "annotations": raw.annotations}))
        chosen.append((stem, random.Random(sample).sample(masks, args.masks)))
    if len(chosen) < WORLD:
        raise SystemExit(f"{len(chosen)} pictures of {source} have {args.masks} masks: give fewer --masks")
    open_index(folder)  # built once, before two ranks look for it
    return chosen, source


def _source(synthetic: Path) -> tuple[Index, str]:
    data = Path(os.environ.get("SAM_DS_DATA", ROOT / ".." / "shared" / "data")) / "nuclei" / "train"
    if data.is_dir():
        return open_index(data), "nuclei"
    synthesize(synthetic, SyntheticConfig(train=60, val=1, objects=(20, 40)))
    index = open_index(synthetic / "train")
    shutil.rmtree(synthetic / "val")
    return index, "drawn scenes"


def make_recipe(args: argparse.Namespace, case: Case) -> Recipe:
    """The tiny recipe's losses and optimizer: on whole pictures without augmentation, or on crops with all of it."""
    recipe = tiny()
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data,
            max_masks=args.masks,
            crop_size=case.crop,
            workers=args.workers,
            transforms=recipe.data.transforms if case.crop else TransformConfig(),
        ),
        prompts=dataclasses.replace(recipe.prompts, correction_rounds=args.rounds - 1, extra_rounds=0),
        loss=dataclasses.replace(recipe.loss, resolution=case.resolution),
        curriculum=CurriculumConfig(),
    )


def make_settings(
    args: argparse.Namespace, case: Case, pictures: list[tuple[str, list[int]]], data: Path
) -> dict[str, Any]:
    """What both loops are given."""
    model = dataclasses.replace(PRESETS["tiny"], image_size=args.image_size)
    config = deepspeed.load("zero2_local").raw
    if not case.crop:
        config |= {"train_batch_size": WORLD * args.pictures, "train_micro_batch_size_per_gpu": args.pictures}
    if case.precision == "fp32":
        config["bf16"] = {"enabled": False}
    return {
        "world": WORLD,
        "model": dataclasses.asdict(model),
        "grid": model.grid_size,
        "recipe": recipe_file.to_dict(make_recipe(args, case)),
        "deepspeed": config,
        "precision": case.precision,  # the peer's; ours has it in the DeepSpeed config
        "peer": case.peer,
        "loop": case.loop,
        "plain": case.plain,
        "ops": case.ops,
        "micro_batch": args.pictures,
        "warmup": args.warmup,
        "steps": args.steps,
        "data": str(data),
        "pictures": pictures,
    }


if __name__ == "__main__":
    main()
