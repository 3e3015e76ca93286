"""One training put together: task, data, engine, tracker and folder, and what the loop asks of them."""

from __future__ import annotations

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
from sam_ds.engine import checkpoint, distributed
from sam_ds.engine.engine import Engine
from sam_ds.engine.watchdog import watchdog
from sam_ds.storage import checkpoints
from sam_ds.tracking.environment import environment
from sam_ds.tracking.tracker import Tracker, open_tracker
from sam_ds.training import tasks
from sam_ds.training.evaluations import Evaluations
from sam_ds.training.health import Health
from sam_ds.training.meters import StepMeter
from sam_ds.training.progress import Progress
from sam_ds.training.saving import Saver
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
        before, source, notes = _restore(self.engine, self.folder, sources, state.data)
        if source is None or self.rewinds.count(before.step) >= self.recipe.train.max_rewinds:
            where = f"{len(self.rewinds)} times after going back" if source else "before the first checkpoint"
            raise UserError(
                f"{trouble}, up to step {state.step}, {where}: lower optim.lr, or train in bf16 or fp32 instead of fp16"
            )
        self.rewinds.append(before.step)
        rewound = before.rewound(state)
        if distributed.is_main():
            self.folder.forget(rewound.step)
        distributed.barrier()
        self.tracker.resumed(rewound.step)
        self.tracker.metrics(rewound.step, {"rewinds": float(rewound.rewinds)})
        self.progress.say(f"REWOUND from step {state.step} to {source}, leaving out the pictures between: {trouble}")
        for note in notes:
            self.progress.say(note)
        self.progress.move_to(rewound.step)
        self.health.forget()
        self.meter.forget()
        self.saver.last_step = rewound.step
        return rewound

    def close(self, failed: bool = False) -> None:
        watchdog.stop()
        self.tracker.close(failed)
        self.engine.close()


def open_run(
    recipe: Recipe,
    config: DeepSpeedConfig,
    data: str,
    val: str | None,
    output: Path,
    resume: str,
    timeout: timedelta = distributed.TIMEOUT,
) -> Run:
    """Put a training together, from a checkpoint if ``resume`` (auto, never or a path) leads to one. Collective.

    Everything that a user can get wrong is looked at before the model is built. No rank waits for another for longer
    than ``timeout``: the job then ends, and says for whom it waited.

    Raises:
        UserError: it cannot start so.
    """
    kit = tasks.kit(recipe.task)
    distributed.init(timeout + _MORE)
    config = config.with_world(distributed.world_size())
    folder = RunFolder(output)
    sources = distributed.on_main(lambda: _open_folder(folder, resume))
    watchdog.start(timeout.total_seconds(), output)
    distributed.on_main(lambda: kit.open_data(data, val))  # one rank builds an index that is not there yet …
    if not distributed.is_main():
        kit.open_data(data, val)  # … and the others find it
    loader = kit.train_loader(recipe, config, folder.quarantine)
    engine = Engine(kit.build, recipe, config)
    state, source, notes = _restore(engine, folder, sources, distributed.on_main(kit.fingerprint))
    tracker = _start_folder(folder, engine, source, state)
    progress = Progress(recipe.train.steps, state.step, enabled=distributed.is_main())
    for note in notes:
        progress.say(note)
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
        saver=Saver(engine, folder, recipe.train, tracker, progress, state.step),
        health=Health(recipe.train),
        state=state,
    )


def _open_folder(folder: RunFolder, resume: str) -> list[Path]:
    make_writable(folder.path)
    return folder.checkpoints_for(resume)


def _restore(
    engine: Engine, folder: RunFolder, sources: list[Path], data: str
) -> tuple[TrainState, Path | None, list[str]]:
    """The state to go on from, the checkpoint that had it, and what the user should know of it.

    A damaged checkpoint of this run is set aside, and the one before it taken.

    Args:
        sources: the checkpoints to try, in order.
        data: the fingerprint of the pictures.
    """
    notes: list[str] = []
    for source in sources:
        try:
            manifest = checkpoint.load(engine, source)
        except checkpoint.DamagedError as error:
            if not folder.owns(source) or source == sources[-1]:
                raise
            notes.append(f"damaged, set aside: {error}")
            distributed.on_main(partial(checkpoints.set_aside, source))
            continue
        return _state_of(engine, source, manifest, data), source, [*notes, *_notes_of(engine, source, manifest)]
    return TrainState(data=data), None, notes


def _state_of(engine: Engine, source: Path, manifest: checkpoints.Manifest, data: str) -> TrainState:
    if manifest.progress.get("data", data) != data:
        raise UserError(
            f"{source} comes from a training on other pictures, or more or fewer of them: give its --data and --val, "
            "or choose another --output and start from its weights with model.init"
        )
    return TrainState(**{**manifest.progress, "data": data, "step": manifest.step})


def _notes_of(engine: Engine, source: Path, manifest: checkpoints.Manifest) -> list[str]:
    steps, notes = engine.recipe.train.steps, [f"going on from {source}"]
    changed = changed_settings(manifest.recipe, engine.recipe)
    if changed:
        notes.append(f"other settings than before step {manifest.step}: {changed}")
    saved = manifest.world_size, manifest.zero_stage, manifest.precision
    own = distributed.world_size(), engine.config.zero_stage, engine.config.precision
    if saved != own:
        before, now = (f"{ranks} ranks, ZeRO-{stage}, {precision}" for ranks, stage, precision in (saved, own))
        notes.append(f"saved by {before}, now {now}: the same pictures in the same order, rounded another way")
    if manifest.step >= steps:
        notes.append(f"already trained to step {manifest.step} of {steps}: set train.steps higher to go on")
    return notes


def changed_settings(saved: dict[str, Any], recipe: Recipe) -> str:
    """The settings that differ from those of a checkpoint's recipe, as text; "" if none does."""
    try:
        before = recipe_file.flatten(recipe_file.from_dict(saved, "the checkpoint's recipe"))
    except UserError as error:
        return f"not comparable ({error})"
    now = recipe_file.flatten(recipe)
    return ", ".join(f"{name} {before[name]} -> {now[name]}" for name in now if before[name] != now[name])


def _start_folder(folder: RunFolder, engine: Engine, source: Path | None, state: TrainState) -> Tracker:
    main, recipe = distributed.is_main(), engine.recipe
    settings: dict[str, Any] = engine.effective_config()
    machine = environment() if main else {}
    if main:
        folder.start(recipe, settings, machine, state.step if source and folder.owns(source) else None)
    distributed.barrier()
    params = {"recipe": recipe_file.to_dict(recipe), "deepspeed": settings, "environment": machine}
    return open_tracker(folder.path, recipe, params, state.step if source else None, main)
