"""A training in one or two phases: a recipe's pre-training, if it has one, in a run folder of its own, then itself.

Both run in one process group. Either phase goes on from its own checkpoints, and the first is over for good as soon as
the second has one.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.errors import LostRanksError, UserError
from sam_ds.config.folders import make_writable
from sam_ds.config.schema import Recipe
from sam_ds.engine import distributed
from sam_ds.engine.preemption import Preempted
from sam_ds.engine.watchdog import watchdog
from sam_ds.modeling import handover
from sam_ds.modeling.handover import Handover
from sam_ds.storage import checkpoints, remote
from sam_ds.storage.remote import Mirror
from sam_ds.storage.weights import find_weights
from sam_ds.training import first_weights, tasks
from sam_ds.training.loop import train
from sam_ds.training.run import join, open_run
from sam_ds.training.state import RunFolder

PRETRAINING = "pretrain"  # its run folder, in that of the recipe


@dataclass(frozen=True)
class Phase:
    recipe: Recipe
    config: DeepSpeedConfig
    data: str
    val: str | None  # None: a part of ``data``


@dataclass(frozen=True)
class Job:
    """What the phases have in common."""

    output: Path  # the run folder
    resume: str  # auto, never, or the checkpoint that the last phase goes on from
    timeout: timedelta
    paranoid: bool


def train_phases(phases: Sequence[Phase], job: Job) -> None:
    """Train one phase, or two of which the second starts from the encoder that the first has trained. Collective.

    Raises:
        UserError: a phase cannot start so, or the second could not after the first.
        LostRanksError: other ranks have gone.
    """
    *before, last = phases
    if before:
        folder = job.output / PRETRAINING
        # The same in every start, whether or not there is a first phase left to do.
        last = dataclasses.replace(last, recipe=first_weights.with_init(last.recipe, str(folder)))
        join(job.timeout)
        if distributed.on_main(lambda: _needs_pretraining(before[0], last, job), watchdog.meet):
            if not _train(before[0], dataclasses.replace(job, output=folder)):
                return
            distributed.on_main(lambda: _check_over(folder, before[0].recipe), watchdog.meet)
            gc.collect()  # DeepSpeed's circles would hold the first phase's memory
    _train(last, job)


def check(phases: Sequence[Recipe]) -> list[Handover]:
    """What can be told of recipes that are trained one after the other without building their models.

    Returns what their models start from, where they do not start from random weights.

    Raises:
        UserError: one of them cannot be built, or what ``model.init`` names, or the phase before, is no start for it.
    """
    kits = [tasks.kit(recipe.task) for recipe in phases]
    starts = []
    for kit, recipe in zip(kits, phases, strict=True):
        kit.check(recipe)
        starts.append(first_weights.look(kit, recipe))
    if len(phases) > 1:
        given, own = (first_weights.shapes(kit, recipe) for kit, recipe in zip(kits, phases, strict=True))
        starts.append(handover.plan(own, given, f"pretrain={phases[0].name}"))
    return [start for start in starts if start]


def _needs_pretraining(first: Phase, last: Phase, job: Job) -> bool:
    """Whether the first phase has something left to do; then the second's part is looked at before. On one rank."""
    if job.resume not in ("auto", "never"):
        return False
    make_writable(job.output)
    here, mirror = RunFolder(job.output), last.recipe.train.mirror
    begun = bool(here.checkpoints_for(job.resume)) or (bool(mirror) and bool(remote.ask(mirror, Mirror.steps)))
    if begun or (job.resume == "auto" and _is_over(job.output / PRETRAINING, first.recipe)):
        return False
    check([first.recipe, first_weights.with_init(last.recipe, "")])
    tasks.kit(last.recipe.task).open_data(last.data, last.val, watchdog.progress)
    return True


def _is_over(folder: Path, recipe: Recipe) -> bool:
    """Whether a phase has come to its last step, and its weights are whole."""
    try:
        weights = find_weights(folder)
        return checkpoints.read_manifest(weights.parent).step >= recipe.train.steps
    except UserError:  # it has not begun, or its last checkpoint is damaged: it goes on from the one before
        return False


def _check_over(folder: Path, recipe: Recipe) -> None:
    """Raise UserError if a phase has come to its end and could not be saved there: the next would start from before."""
    if not _is_over(folder, recipe):
        raise UserError(
            f"{recipe.name} is trained, but its last step could not be saved in {folder}: the same command trains it "
            "from its last checkpoint on"
        )


def _train(phase: Phase, job: Job) -> bool:
    """Returns whether the phase has come to its end; else the job was asked to stop."""
    run = open_run(phase.recipe, phase.config, phase.data, phase.val, job.output, job.resume, job.timeout, job.paranoid)
    over = False
    error: BaseException | None = None
    try:
        train(run)
        over = True
    except Preempted as stopped:
        run.progress.say(f"{stopped}: the same command goes on from there")
    except BaseException as raised:
        error = raised
        if distributed.says_ranks_are_lost(raised):
            error = LostRanksError(f"other ranks have gone ({str(raised).splitlines()[0]})")
            raise error from raised
        raise
    finally:
        run.close(error)
    run.progress.say(f"all of it is in {job.output}")
    return over
