"""What the ranks run of trainings that start from other weights, and of those in two phases."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import io
import json
import shutil
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe
from sam_ds.engine import distributed
from sam_ds.modeling.convert import read_weights
from sam_ds.recipes import RECIPES
from sam_ds.storage import checkpoints
from sam_ds.storage.weights import find_weights
from sam_ds.training import loop, phases
from sam_ds.training.phases import Job, Phase, train_phases
from sam_ds.training.run import Run, open_run
from tests.engine import toy
from tests.training import cases


def config(stage: int) -> DeepSpeedConfig:
    return dataclasses.replace(toy.config(stage, accumulation=1), micro_batch=2)


def mae(**train: Any) -> Recipe:
    """Of the encoder of ``cases.tiny``."""
    recipe = RECIPES["mae_tiny"]()
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, workers=0),
        train=dataclasses.replace(recipe.train, **train),
        eval=dataclasses.replace(recipe.eval, max_pictures=2, pictures=1),
        tracking=dataclasses.replace(recipe.tracking, mlflow=False),
    )


def two_phases(data: str, stage: int, steps: int = 6) -> list[Phase]:
    """With a frozen start of the second."""
    train = {"steps": steps, "log_every": 1, "eval_every": 0, "save_every": 4, "keep_last": 1, "keep_best": False}
    tiny = dataclasses.replace(cases.tiny(**train), pretrain="mae_tiny")
    tiny = dataclasses.replace(tiny, optim=dataclasses.replace(tiny.optim, frozen_encoder_steps=2))
    return [Phase(recipe, config(stage), data, None) for recipe in (mae(**train), tiny)]


def job(output: Path, resume: str = "auto") -> Job:
    return Job(output, resume, timedelta(seconds=60), paranoid=False)


def said_of(work: Any) -> str:
    """What it prints, and its mistake."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            work()
        except UserError as error:
            print(error)
    return said.getvalue()


@contextlib.contextmanager
def killed_in(task: str, last: int) -> Any:
    """Trainings of a task stop as if killed after that many steps."""
    phases.train = lambda run: loop.train(cases.stopping(run, last) if run.recipe.task == task else run)
    try:
        yield
    except cases.Interrupted:
        pass
    finally:
        phases.train = loop.train
        distributed.barrier()


def digests(folder: Path) -> dict[str, str]:
    """Of all files, and when they were written."""
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def last_weights(output: Path) -> str:
    """The digest of what a run came to."""
    newest = checkpoints.find(output / "checkpoints")[-1]
    return f"{newest.name} {hashlib.sha256((newest / checkpoints.WEIGHTS).read_bytes()).hexdigest()}"


def chain(folder: Path, data: str, stage: int) -> Any:
    """Two phases at one go, and killed in each of them: equal weights, and a first phase that is left alone."""
    both = two_phases(data, stage)
    straight, killed = folder / "straight", folder / "killed"
    said = said_of(lambda: train_phases(both, job(straight)))
    for task in ("pretrain_mae", "segment_images"):
        with killed_in(task, 5):
            train_phases(both, job(killed))
    before = distributed.on_main(lambda: digests(killed / "pretrain"))
    resumed = said_of(lambda: train_phases(both, job(killed)))
    return {
        "said": said,
        "resumed": resumed,
        "first": [last_weights(output / "pretrain") for output in (straight, killed)],
        "second": [last_weights(output) for output in (straight, killed)],
        "untouched": distributed.on_main(lambda: digests(killed / "pretrain")) == before,
        "init": json.loads((straight / "init.json").read_text()),
        "recipe": json.loads((straight / "recipe.json").read_text()),
    }


def begun_second(folder: Path, data: str) -> Any:
    """Once the second phase has a checkpoint, the first is over, even if its folder is gone, and unless it is new."""
    both = two_phases(data, 2, steps=4)
    train_phases(both, job(folder / "run"))
    distributed.barrier()
    if distributed.is_main():
        shutil.rmtree(folder / "run" / "pretrain")
    distributed.barrier()
    longer = two_phases(data, 2, steps=5)
    said = said_of(lambda: train_phases(longer, job(folder / "run")))
    never = said_of(lambda: train_phases(longer, job(folder / "run", "never")))
    other = said_of(lambda: train_phases(longer, job(folder / "other", str(folder / "run"))))
    there = [(folder / name / "pretrain").exists() for name in ("run", "other")]
    return {"said": said, "never": never, "other": other, "there": there}


def damaged_between(folder: Path, data: str) -> Any:
    """The last checkpoint of the first phase is damaged before the second begins: it is trained again from before."""
    first, second = two_phases(data, 2, steps=5)
    first = dataclasses.replace(first, recipe=mae(steps=5, save_every=4, eval_every=0, keep_last=2, keep_best=False))
    with killed_in("segment_images", 0):
        train_phases([first, second], job(folder / "run"))
    newest = folder / "run" / "pretrain" / "checkpoints" / "step_00000005"
    if distributed.is_main():
        (newest / checkpoints.WEIGHTS).write_bytes(b"0")
    distributed.barrier()
    return {"said": said_of(lambda: train_phases([first, second], job(folder / "run")))}


def unsaved_between(folder: Path, data: str) -> Any:
    """The last step of the first phase cannot be saved: the second does not begin from an earlier one."""
    both = two_phases(data, 2, steps=5)
    saving = importlib.import_module("sam_ds.engine.checkpoint.save")  # the package's own ``save`` is the function
    commit = saving.commit

    def full_at_the_end(partial: Path, *rest: Any) -> Any:
        if "step_00000005" in str(partial):
            raise OSError(errno.ENOSPC, "No space left on device")
        return commit(partial, *rest)

    saving.commit = full_at_the_end
    try:
        said = said_of(lambda: train_phases(both, job(folder / "run")))
    finally:
        saving.commit = commit
    begun = (folder / "run" / "checkpoints").exists()
    again = said_of(lambda: train_phases(both, job(folder / "run")))
    return {"said": said, "begun": begun, "again": again}


def refused(folder: Path, data: str) -> Any:
    """What would go wrong in the second phase is found before the first."""
    first, second = two_phases(data, 2)
    wide = dataclasses.replace(second.recipe, model=dataclasses.replace(second.recipe.model, preset="vit_b"))
    cases_of = {
        "width": [first, dataclasses.replace(second, recipe=wide)],
        "data": [first, dataclasses.replace(second, data=str(folder / "nowhere"))],
    }
    said = {name: said_of(partial(train_phases, both, job(folder / name))) for name, both in cases_of.items()}
    return said | {"trained": any((folder / name / "pretrain").exists() for name in cases_of)}


def from_a_run(folder: Path, data: str) -> Any:
    """SAMs that start from the run folder of a masked autoencoder and of a SAM, and go on when it is gone."""
    train = {"steps": 2, "eval_every": 0, "keep_best": False}
    _done(open_run(mae(**train), config(2), data, None, folder / "mae", "auto"))
    equal = []
    for name, source, of_block in (
        ("second", "mae", "blocks.0.mlp.fc1"),
        ("third", "second/checkpoints/step_00000002", "image_encoder.blocks.0.mlp.lin1"),
    ):
        recipe = _with_init(cases.tiny(**train), folder / source)
        run = open_run(recipe, config(2), data, None, folder / name, "auto")
        started = run.engine.state_dict(everywhere=True)["model.image_encoder.blocks.0.mlp.lin1.weight"]
        equal.append(bool((started == read_weights(find_weights(folder / source))[f"{of_block}.weight"]).all()))
        _done(run)
    distributed.barrier()
    if distributed.is_main():
        shutil.rmtree(folder / "mae")
    distributed.barrier()
    gone = _with_init(cases.tiny(**(train | {"steps": 3})), folder / "mae")
    on = said_of(lambda: _done(open_run(gone, config(2), data, None, folder / "second", "auto")))
    anew = said_of(lambda: open_run(gone, config(2), data, None, folder / "anew", "auto"))
    return {
        "equal": equal,
        "on": on,
        "anew": anew,
        "init": json.loads((folder / "third" / "init.json").read_text()),
    }


def _with_init(recipe: Recipe, source: Path) -> Recipe:
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, init=str(source)))


def _done(run: Run) -> None:
    loop.train(run)
    run.close()
