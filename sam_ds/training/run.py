"""One training put together: task, data, engine, tracker and folder, and what the loop asks of them."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sam_ds.config import recipe_file
from sam_ds.config.deepspeed import DeepSpeedConfig
from sam_ds.config.errors import UserError
from sam_ds.config.folders import make_writable
from sam_ds.config.schema import Recipe
from sam_ds.engine import distributed
from sam_ds.engine.engine import Engine
from sam_ds.engine.watchdog import watchdog
from sam_ds.modeling.handover import Handover
from sam_ds.optim.schedule import batch_note
from sam_ds.storage import checkpoints, remote
from sam_ds.storage.remote import Mirror
from sam_ds.tracking.environment import environment
from sam_ds.tracking.tracker import Tracker, open_tracker
from sam_ds.training import first_weights, tasks
from sam_ds.training.evaluations import Evaluations
from sam_ds.training.health import Health
from sam_ds.training.meters import StepMeter
from sam_ds.training.progress import Progress
from sam_ds.training.restore import restore
from sam_ds.training.saving import Saver
from sam_ds.training.starts import Starts
from sam_ds.training.state import RunFolder, TrainState

_MORE = timedelta(seconds=60)  # that a group waits for longer than the watchdog, which knows more to say


@dataclass(frozen=True)
class Run:
    recipe: Recipe
    folder: RunFolder
    kit: tasks.Kit
    engine: Engine
    loader: tasks.Loader
    tracker: Tracker
    meter: StepMeter
    evaluations: Evaluations
    progress: Progress
    saver: Saver
    health: Health
    state: TrainState  # where it starts
    starts: Starts
    rewinds: list[int] = field(default_factory=list)  # steps that were gone back to

    def log(self, state: TrainState) -> str:
        """Report the means of the steps since the last report. Collective, and waits for the device.

        Returns why the training cannot go on so, or "".
        """
        values = self.meter.read() | {"skipped_steps": float(state.skipped), "pictures": float(state.pictures)}
        spike, trouble = False, ""
        if "loss/total" in values:
            rounds = self.kit.rounds(self.recipe, state.step - 1)
            spike, trouble = self.health.after_report(values["loss/total"], rounds)
        self.tracker.metrics(state.step, values | {"loss/spike": float(spike)})
        shown = {"loss": "loss/total", "lr": "lr", "norm": "grad_norm", "pictures/s": "throughput/images_per_s"}
        self.progress.show({short: values[name] for short, name in shown.items() if name in values})
        if spike:
            self.progress.say(f"the loss has a spike at step {state.step}")
        return trouble

    def evaluate(self, state: TrainState) -> float:
        """Measure the weights of now, once; returns the score. Collective."""
        score = self.evaluations.measure(self.engine, state.step, self.progress.say)
        self.meter.restart()
        return score

    def save(self, state: TrainState, score: float | None) -> str:
        """Begin to write a checkpoint. Collective. Returns why the state is none to go on from, or ""."""
        trouble = self.saver.start(state, score)
        self.meter.restart()
        return trouble

    def rewind(self, state: TrainState, trouble: str) -> TrainState:
        """Go back to the newest whole checkpoint, and leave out the pictures that led here from there. Collective.

        Raises:
            UserError: there is none, or it was gone back to often enough.
        """
        self.saver.finish()
        sources = distributed.on_main(lambda: self.folder.checkpoints_for("auto"))
        before, source, notes = restore(self.engine, self.folder, sources, state.data)
        if source is None or self.rewinds.count(before.step) >= self.recipe.train.max_rewinds:
            where = f"{len(self.rewinds)} times after going back" if source else "before the first checkpoint"
            raise UserError(
                f"{trouble}, up to step {state.step}, {where}: lower optim.lr, or train in bf16 or fp32 instead of fp16"
            )
        self.rewinds.append(before.step)
        rewound = before.rewound(state)
        if distributed.is_main():
            self.evaluations.forget(rewound.step)
        distributed.barrier()
        self.tracker.resumed(rewound.step)
        self.tracker.metrics(rewound.step, {"rewinds": float(rewound.rewinds)})
        self.progress.say(f"REWOUND from step {state.step} to {source}, leaving out the pictures between: {trouble}")
        for note in notes:
            self.progress.say(note)
        self.progress.move_to(rewound.step)
        self.health.forget()
        self.meter.forget()
        self.saver.went_back(rewound.step)
        return rewound

    def close(self, error: BaseException | None = None) -> None:
        """The training is over, because of ``error`` if it has not come to its end."""
        watchdog.stop()
        if distributed.is_main():
            if error is None or isinstance(error, (UserError, KeyboardInterrupt)):
                self.starts.progressed()
            else:
                self.starts.failed(f"{type(error).__name__}: {error}")
        self.saver.close()
        self.tracker.close(failed=error is not None)
        self.engine.close()


def open_run(
    recipe: Recipe,
    config: DeepSpeedConfig,
    data: str,
    val: str | None,
    output: Path,
    resume: str,
    timeout: timedelta = distributed.TIMEOUT,
    paranoid: bool = False,
) -> Run:
    """Put a training together, from a checkpoint if ``resume`` (auto, never or a path) leads to one. Collective.

    Everything that a user can get wrong is looked at before the model is built. No rank waits for another for longer
    than ``timeout``: the job then ends, and says for whom it waited.

    Raises:
        UserError: it cannot start so.
    """
    join(timeout)
    watchdog.start(timeout.total_seconds(), output)
    try:
        return _open(recipe, config, data, val, RunFolder(output), resume, paranoid)
    except BaseException:
        watchdog.stop()
        raise


def _open(
    recipe: Recipe,
    config: DeepSpeedConfig,
    data: str,
    val: str | None,
    folder: RunFolder,
    resume: str,
    paranoid: bool,
) -> Run:
    kit = tasks.kit(recipe.task)
    config = config.with_world(distributed.world_size())
    sources, lost = distributed.on_main(lambda: _open_folder(folder, resume, recipe.train.mirror), watchdog.meet)
    start = _find_start(kit, recipe, sources)
    _open_data(kit, data, val)
    loader = kit.train_loader(recipe, config, folder.quarantine)
    starts = _begin(folder, sources)
    with starts.opening():
        build = partial(first_weights.build, kit, weights=start.source if start else "")
        engine = Engine(build, recipe, config, paranoid=paranoid)
        state, source, notes = restore(engine, folder, sources, distributed.on_main(kit.fingerprint))
        notes += distributed.on_main(lambda: _check_disk(folder, engine))
    tracker = _start_folder(folder, kit.classes, engine, source, state, start)
    progress = _open_progress(engine, state, start, [*lost, *notes])
    return Run(
        recipe=recipe,
        folder=folder,
        kit=kit,
        engine=engine,
        loader=loader,
        tracker=tracker,
        meter=StepMeter(engine),
        evaluations=Evaluations(recipe, kit, folder, tracker),
        progress=progress,
        saver=Saver(engine, folder, recipe.train, tracker, progress, starts, state.step),
        health=Health(recipe.train),
        state=state,
        starts=starts,
    )


def join(timeout: timedelta) -> None:
    """Join the group of ranks, of which none waits for another for longer than ``timeout``. Collective."""
    distributed.init(timeout + _MORE)


def _find_start(kit: tasks.Kit, recipe: Recipe, sources: list[Path]) -> Handover | None:
    """What the model takes of ``model.init``. What goes on from a checkpoint needs none of it, and it may be gone."""
    return None if sources else distributed.on_main(lambda: first_weights.look(kit, recipe), watchdog.meet)


def _open_progress(engine: Engine, state: TrainState, start: Handover | None, notes: list[str]) -> Progress:
    recipe, config = engine.recipe, engine.config
    progress = Progress(recipe.train.steps, state.step, enabled=distributed.is_main())
    of_batch = batch_note(recipe, config.global_batch(distributed.world_size()), config.source)
    for note in [*notes, of_batch, f"starting from {start}" if start else ""]:
        if note:
            progress.say(note)
    return progress


def _open_data(kit: tasks.Kit, data: str, val: str | None) -> None:
    def work() -> None:
        kit.open_data(data, val, watchdog.progress)

    distributed.on_main(work, watchdog.meet)  # one rank builds an index that is not there yet …
    if not distributed.is_main():
        work()  # … and the others find it, unless their machines have disks of their own
    watchdog.meet()


def _check_disk(folder: RunFolder, engine: Engine) -> list[str]:
    """What the user should know of the space for checkpoints. Raises UserError if there is not enough for one."""
    parameters = sum(math.prod(shape) for shape in engine.shapes.values())
    needed = checkpoints.space_for_one(engine.recipe, parameters)
    of_all = checkpoints.space_for_all(engine.recipe, parameters)
    free = shutil.disk_usage(folder.path).free
    missing = of_all - len(checkpoints.find(folder.checkpoints)) * needed - free
    if free < needed:
        raise UserError(
            f"{folder.path} has {free / 1e9:.2f} GB free, and a checkpoint of this model needs {needed / 1e9:.2f}: "
            "free some, or choose another --output"
        )
    if missing > 0:
        return [f"{folder.path} lacks {missing / 1e9:.2f} GB for the checkpoints that the recipe will have there"]
    return []


def _begin(folder: RunFolder, sources: list[Path]) -> Starts:
    """Note the start before the model is built: memory for it may be what there is not."""
    starts = Starts(folder.path)
    # By its name: it may be damaged.
    step = checkpoints.step_of(sources[0]) if sources and folder.owns(sources[0]) else 0
    distributed.on_main(lambda: starts.begin(step))
    return starts


def _open_folder(folder: RunFolder, resume: str, mirror: str) -> tuple[list[Path], list[str]]:
    make_writable(folder.path)
    notes = folder.recover()
    if mirror and resume == "auto":
        here = checkpoints.find(folder.checkpoints)
        newest = checkpoints.step_of(here[-1]) if here else -1
        notes += remote.ask(mirror, lambda there: there.pull(folder.checkpoints, newest, watchdog.progress))[1]
    sources = folder.checkpoints_for(resume)
    if mirror and resume != "auto":
        newest = checkpoints.read_manifest(sources[0]).step if sources else -1
        if any(step > newest for step in remote.ask(mirror, Mirror.steps)):
            raise UserError(f"train.mirror={mirror} holds a training that went further: give this one another place")
    return sources, notes


def _start_folder(
    folder: RunFolder,
    classes: list[str],
    engine: Engine,
    source: Path | None,
    state: TrainState,
    start: Handover | None,
) -> Tracker:
    main, recipe = distributed.is_main(), engine.recipe
    settings: dict[str, Any] = engine.effective_config()
    machine = environment() if main else {}
    if main:
        watchdog.progress(f"opening {folder.path}")
        folder.start(recipe, settings, machine, state.step if source and folder.owns(source) else None)
        if start:
            folder.add_start(start.to_dict())
        if classes:
            folder.add_classes(classes)
    watchdog.meet()
    params = {"recipe": recipe_file.to_dict(recipe), "deepspeed": settings, "environment": machine}
    step = state.step if source else None
    return open_tracker(folder.path, recipe, params, step, main, distributed.local_rank())
