"""What the ranks run: the real tasks on drawn pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from sam_ds.config import deepspeed as ds_config
from sam_ds.config.errors import UserError
from sam_ds.config.schema import ClassifyConfig, CurriculumConfig, PromptConfig, Recipe
from sam_ds.data.loader import TrainLoader
from sam_ds.data.sampler import Share
from sam_ds.engine import distributed
from sam_ds.engine.checkpoint.save import Files
from sam_ds.engine.engine import Engine
from sam_ds.engine.gradients import compare_gradients
from sam_ds.engine.preemption import Preempted
from sam_ds.modeling.presets import PRESETS, VIT_PRESETS
from sam_ds.prompts.first import first_prompt
from sam_ds.recipes import RECIPES
from sam_ds.storage import checkpoints
from sam_ds.tasks.segment_images import SegmentImages, SegmentInputs
from sam_ds.training import loop, tasks
from sam_ds.training.run import Run, open_run
from sam_ds.training.segment_images import SegmentImagesKit
from sam_ds.types import SegmentBatch
from tests.engine import cases as engine_cases
from tests.engine import toy

MIXED = PromptConfig(
    point=0.25, box=0.25, mask=0.25, none=0.25, num_points=(0.5, 0.3, 0.2), correction_rounds=2, extra_rounds=1
)


# Everything that tiny has, on inputs of a sixteenth.
PRESETS["test"] = dataclasses.replace(PRESETS["tiny"], image_size=128, window_size=4)
VIT_PRESETS["test"] = dataclasses.replace(VIT_PRESETS["vit_tiny"], image_size=32, depth=2)


def tiny(checkpointing: str = "none", **train: Any) -> Recipe:
    recipe = RECIPES["tiny"]()
    return dataclasses.replace(
        recipe,
        prompts=MIXED,
        curriculum=CurriculumConfig(parts=(0.7, 0.3), crop_sizes=(32, 128), correction_rounds=(1, 2)),
        model=dataclasses.replace(recipe.model, preset="test", checkpointing=checkpointing, drop_path=0.1),
        data=dataclasses.replace(recipe.data, max_masks=4, workers=0),
        train=dataclasses.replace(recipe.train, **train),
        eval=dataclasses.replace(recipe.eval, clicks=(1, 2), max_pictures=2, max_masks=3, pictures=1),
        tracking=dataclasses.replace(recipe.tracking, mlflow=False),
    )


def mae(checkpointing: str = "none", **train: Any) -> Recipe:
    recipe = RECIPES["mae_tiny"]()
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, preset="test", checkpointing=checkpointing, drop_path=0.1),
        data=dataclasses.replace(recipe.data, workers=0),
        train=dataclasses.replace(recipe.train, **train),
        eval=dataclasses.replace(recipe.eval, max_pictures=2, pictures=1),
        tracking=dataclasses.replace(recipe.tracking, mlflow=False),
    )


def classify(checkpointing: str = "none", **train: Any) -> Recipe:
    """Three classes, mixed pictures, and a mean of the weights."""
    recipe = RECIPES["vit_tiny_classify"]()
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, preset="test", checkpointing=checkpointing, drop_path=0.1),
        data=dataclasses.replace(recipe.data, workers=0),
        classify=ClassifyConfig(num_classes=3, label_smoothing=0.1, mixup=0.8, cutmix=1.0),
        train=dataclasses.replace(recipe.train, **train),
        eval=dataclasses.replace(recipe.eval, max_pictures=2, pictures=1),
        tracking=dataclasses.replace(recipe.tracking, mlflow=False),
    )


# By task: a recipe, and another evaluation.
SMALL: dict[str, Callable[..., Recipe]] = {"segment_images": tiny, "pretrain_mae": mae, "classify_images": classify}
CHANGED_EVAL: dict[str, dict[str, Any]] = {
    "segment_images": {"clicks": (3,)},
    "pretrain_mae": {"max_pictures": 1},
    "classify_images": {"max_pictures": 1},
}


def one_graph(folder: Path, stage: int, checkpointing: str) -> Any:
    """Steps in which the ranks draw other prompts, and have other numbers of objects."""
    recipe, kit = tiny(checkpointing), tasks.kit("segment_images")
    engine = Engine(SegmentImages, recipe, toy.config(stage, accumulation=1))
    world, rank = distributed.world_size(), distributed.rank()
    losses, labels = [], []
    for step in range(3):
        batch = kit.example(recipe, step * world + rank)
        inputs = engine.task.prepare(batch, step)
        side = engine.task.model.config.image_size
        first = first_prompt(inputs.truth, inputs.keys, recipe.prompts, side, 1, (4, 4))
        labels.append(first.prompts.labels.tolist())
        losses.append(distributed.mean_logs(engine.train_step([batch], step).logs)["loss/total"])
    weights = engine_cases.own_digest(engine)
    engine.close()
    return {"losses": losses, "labels": labels, "weights": weights}


def parity(folder: Path, task: str, stage: int, checkpointing: str) -> Any:
    recipe, kit = SMALL[task](checkpointing), tasks.kit(task)
    config = toy.config(stage, accumulation=2)
    world, rank = distributed.world_size(), distributed.rank()
    batches = [kit.example(recipe, micro * world + rank) for micro in range(2)]
    report = compare_gradients(kit.build, recipe, config, batches)
    return {"passed": report.passed, "report": str(report)}


class Interrupted(Exception):
    """What ends a run in the middle, in place of a fault."""


def stopping(run: Run, last: int, finish: bool = True) -> Run:
    """The run, which stops as if killed when ``last`` steps are done and reported, and saved if they were to be."""

    class Stopping:
        def steps(self, start: int, left_out: int) -> Any:
            for step, batches in enumerate(run.loader.steps(start, left_out), start):
                if step == last:
                    if finish:
                        run.saver.finish()
                    raise Interrupted
                yield batches

    return dataclasses.replace(run, loader=Stopping())


def interrupted(data: str, recipe: Recipe, config: ds_config.DeepSpeedConfig, output: Path, last: int) -> None:
    """Train until ``last`` steps are done and reported, then stop as if killed."""
    run = open_run(recipe, config, data, None, output, "auto")
    try:
        loop.train(stopping(run, last))
    except Interrupted as error:
        run.close(error)


def resume(folder: Path, task: str, data: str, stage: int) -> Any:
    """A run of 6 steps, and one that is stopped after 5, saved at 3 and 4, and goes on from 4."""
    recipe = SMALL[task](steps=6, log_every=1, eval_every=3, save_every=4, keep_last=1)
    config = dataclasses.replace(toy.config(stage, accumulation=2), micro_batch=2)
    outputs = [folder / "straight", folder / "resumed"]
    interrupted(data, recipe, config, outputs[1], 5)
    states = []
    for output in outputs:
        run = open_run(recipe, config, data, None, output, "auto")
        states.append(loop.train(run))
        last = engine_cases.digest(run.engine.state_dict(everywhere=True))
        states[-1] = [states[-1].step, states[-1].pictures, run.state.step, last, engine_cases.own_digest(run.engine)]
        run.close()
    distributed.barrier()
    said = said_of_a_finished_run(data, recipe, config, outputs[0], folder / "again")
    return {"said": said, "straight": states[0], "resumed": states[1], "folders": [str(output) for output in outputs]}


def said_of_a_finished_run(
    data: str, recipe: Recipe, config: ds_config.DeepSpeedConfig, finished: Path, output: Path
) -> str:
    """What a copy of a finished run prints when it is started again with another evaluation."""
    if distributed.is_main():
        shutil.copytree(finished, output)
    distributed.barrier()
    changed = dataclasses.replace(recipe, eval=dataclasses.replace(recipe.eval, **CHANGED_EVAL[recipe.task]))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run = open_run(changed, config, data, None, output, "auto")
        loop.train(run)
    run.close()
    return said.getvalue()


def global_batches(folder: Path, data: str, accumulation: int) -> Any:
    """Which pictures with which draws the ranks together see in three steps, by their place in the stream."""
    kit, recipe = tasks.kit("segment_images"), tiny()
    kit.open_data(data, None)
    world, rank = distributed.world_size(), distributed.rank()
    loader = TrainLoader(kit.splits[0], recipe, 64, Share(2, accumulation, rank, world), None)
    seen = []
    for _, batches in zip(range(3), loader.steps(0), strict=False):
        mine = [
            [int(b.positions[i]), int(b.sample_ids[i]), b.mask_ids[b.picture == i].tolist(), int(b.images[i].sum())]
            for b in batches
            for i in range(len(b))
        ]
        seen.append(sorted(itertools.chain(*distributed.gather(mine))))
    return json.loads(json.dumps(seen))


def masked(folder: Path, data: str, accumulation: int) -> Any:
    """Three steps of masked autoencoding: losses, rates, and which patches of which picture of the stream are seen."""
    recipe, kit = mae(), tasks.kit("pretrain_mae")
    recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr_batch=2))
    kit.open_data(data, None)
    config = dataclasses.replace(toy.config(2, accumulation=accumulation), micro_batch=2)
    engine = Engine(kit.build, recipe, config)
    losses, seen, rates = [], [], [group["lr"] for group in engine.effective_config()["groups"]]
    for step, batches in zip(range(3), kit.train_loader(recipe, config, None).steps(0), strict=False):
        orders = [engine.task.prepare(batch, step).order for batch in batches]
        places = torch.cat([batch.positions for batch in batches]).tolist()
        seen += itertools.chain(*distributed.gather(list(zip(places, torch.cat(orders).tolist(), strict=True))))
        result = engine.train_step(batches, step)
        losses.append(distributed.mean_logs(result.logs)["loss/total"])
        rates.append(result.lr)
    engine.close()
    return {"losses": losses, "rates": rates, "seen": json.loads(json.dumps(sorted(seen)))}


class _SickTask(SegmentImages):
    """Its loss is not finite for the pictures of the 4th and the 5th step's worth of the stream, 4 pictures a step."""

    def prepare(self, batch: SegmentBatch, step: int) -> SegmentInputs:
        inputs = super().prepare(batch, step)
        sick = ((batch.positions // 4 == 3) | (batch.positions // 4 == 4)).any()
        return dataclasses.replace(inputs, images=torch.where(sick, torch.nan, inputs.images))


class _SickKit(SegmentImagesKit):
    def build(self, recipe: Recipe) -> SegmentImages:
        return _SickTask(recipe)


class _ScoredKit(SegmentImagesKit):
    """Step 2 scores best. Its first evaluation is cut short, as where a rank was asked to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = True

    def evaluate(self, model: Any, recipe: Recipe, device: torch.device, pictures: Path) -> Any:
        step = int(pictures.name.removeprefix("step_"))
        if step == 2 and self.cut:
            raise Preempted
        results, drawn = super().evaluate(model, recipe, device, pictures)
        return results | {f"miou@{recipe.eval.clicks[-1]}": 1.0 if step == 2 else 0.5}, drawn


class _ScoredInPeace(_ScoredKit):
    def __init__(self) -> None:
        super().__init__()
        self.cut = False


def failed_while_saving(folder: Path, data: str) -> Any:
    """A run that fails while its first checkpoint is being written: what is left when it is closed."""
    recipe = tiny(steps=3, save_every=1, eval_every=0)
    run, write = open_run(recipe, toy.config(2), data, None, folder / "run", "auto"), Files.write

    def slowly(files: Files, partial: Path) -> Any:
        (folder / f"began_{distributed.rank()}").touch()
        time.sleep(1)
        return write(files, partial)

    with mock.patch.object(Files, "write", slowly):
        try:
            loop.train(stopping(run, 1, finish=False))
        except Interrupted as error:
            run.close(error)
    began = (folder / f"began_{distributed.rank()}").exists()
    return {"began": began, "busy": run.saver.busy(), "saved": list(scores(run.folder.checkpoints))}


def cut_short(folder: Path, data: str) -> Any:
    """A run that is asked to stop while it measures its best step, and its second life: which checkpoints stay."""
    recipe = tiny(steps=6, save_every=0, eval_every=2, keep_last=1, keep_best=True)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            for kit in (_ScoredKit, _ScoredInPeace):
                tasks.TASKS["segment_images"] = kit
                run = open_run(recipe, toy.config(2), data, None, folder / "run", "auto")
                try:
                    loop.train(run)
                except Preempted as error:
                    run.progress.say(str(error))
                run.close()
    finally:
        tasks.TASKS["segment_images"] = SegmentImagesKit
    return {"said": said.getvalue(), "scores": scores(run.folder.checkpoints)}


def scores(root: Path) -> dict[str, float | None]:
    """Of the checkpoints of a run."""
    return {path.name: checkpoints.read_manifest(path).score for path in checkpoints.find(root)}


def measured_late(folder: Path, data: str) -> Any:
    """A run whose evaluation comes due in the first of two skipped steps, the 4th and the 5th."""
    recipe = tiny(steps=8, save_every=0, eval_every=4, keep_last=9, keep_best=True, max_skipped=9)
    tasks.TASKS["segment_images"] = _SickKit
    try:
        run = open_run(recipe, dataclasses.replace(toy.config(2), micro_batch=2), data, None, folder / "run", "auto")
        loop.train(run)
        run.close()
    finally:
        tasks.TASKS["segment_images"] = SegmentImagesKit
    return {"measured": list(run.folder.evaluations()), "scores": scores(run.folder.checkpoints)}


def rewind(folder: Path, data: str, save_every: int) -> Any:
    """A run that is led astray by two steps' pictures, with and without a checkpoint before them."""
    recipe = tiny(steps=6, log_every=1, eval_every=0, save_every=save_every, keep_last=9, max_skipped=2)
    config = dataclasses.replace(toy.config(2), micro_batch=2)
    said = io.StringIO()
    tasks.TASKS["segment_images"] = _SickKit
    try:
        with contextlib.redirect_stdout(said):
            run = open_run(recipe, config, data, None, folder / "run", "auto")
            state = loop.train(run)
            run.close()
    except UserError as error:
        run.close(error)
        return {"error": str(error)}
    finally:
        tasks.TASKS["segment_images"] = SegmentImagesKit
    return {"said": said.getvalue(), "state": dataclasses.asdict(state), "folder": str(run.folder.path)}


def mirrored(folder: Path, data: str) -> Any:
    """A run that copies its checkpoints away, and one that starts on a machine that has none: what they print."""
    recipe = tiny(steps=3, save_every=1, eval_every=0, keep_last=1, mirror=f"file://{folder}/there")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for output in ("first", "second"):
            run = open_run(recipe, toy.config(2), data, None, folder / output, "auto")
            loop.train(run)
            run.close()
        try:
            open_run(recipe, toy.config(2), data, None, folder / "third", "never")
        except UserError as error:
            print(error)
    return {"said": said.getvalue(), "there": sorted(path.name for path in (folder / "there").iterdir())}


def damaged_here(folder: Path, data: str) -> Any:
    """A run that goes on after its newest checkpoint was damaged, then its copy too, then all: what it prints."""
    there, here = folder / "there", folder / "run" / "checkpoints"
    said = []
    for steps in (2, 3, 4, 5):
        recipe = tiny(steps=steps, save_every=1, eval_every=0, keep_last=2, keep_best=False, mirror=f"file://{there}")
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                run = open_run(recipe, toy.config(2), data, None, folder / "run", "auto")
                loop.train(run)
                run.close()
        except UserError as error:
            print(error, file=printed)
        said.append(printed.getvalue())
        spoilt = {2: [here / "step_00000002"], 3: [here / "step_00000003", there / "step_00000003"]}
        if distributed.is_main():
            for path in spoilt.get(steps, [*there.glob("step_*"), *here.glob("step_*")]):
                (path / "weights.safetensors").write_bytes(b"0")
        distributed.barrier()
    watched = any(thread.name == "watchdog" for thread in threading.enumerate())
    return {"said": said, "here": sorted(path.name for path in here.iterdir()), "watched": watched}
