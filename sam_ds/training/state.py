"""What a training counts, and the folder it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_ds.config import recipe_file
from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe
from sam_ds.storage import checkpoints
from sam_ds.tracking import journal

# What a training reports into, and what must not be taken for a report of another one.
_REPORTS = ("init.json", "classes.json", "evaluations.json", journal.NAME, "mlflow.json", "tensorboard")
_DRAWING = ("batch", "pictures")  # settings of an evaluation that change no number


@dataclass(frozen=True)
class TrainState:
    """How far a training is. A checkpoint holds it."""

    step: int = 0  # optimizer steps done, skipped ones among them
    pictures: int = 0  # seen, by all ranks
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    rewinds: int = 0  # to a checkpoint, because the numbers went wrong
    left_out: int = 0  # steps' worth of pictures that rewinds have left out: so far is the stream ahead of the steps
    data: str = ""  # fingerprint of the pictures

    def after(self, pictures: int, skipped: bool) -> TrainState:
        """The state after one more step."""
        return dataclasses.replace(
            self,
            step=self.step + 1,
            pictures=self.pictures + pictures,
            skipped=self.skipped + skipped,
            skipped_in_a_row=self.skipped_in_a_row + 1 if skipped else 0,
        )

    def rewound(self, before: TrainState) -> TrainState:
        """This state, of a checkpoint, to go on from after the pictures with which the state ``before`` was reached."""
        last = before.step + before.left_out
        return dataclasses.replace(self, rewinds=before.rewinds + 1, left_out=last - self.step, skipped_in_a_row=0)

    def progress(self) -> dict[str, Any]:
        """As a checkpoint holds it, next to its own ``step``."""
        values = dataclasses.asdict(self)
        del values["step"]
        return values


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training: see the README for what lies where."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    def start(
        self, recipe: Recipe, deepspeed: dict[str, Any], environment: dict[str, Any], resumed: int | None
    ) -> None:
        """Write down what is about to be trained, how, and on what.

        Numbers that do not belong to this training go: all of an earlier one are set aside, unless ``resumed`` says
        from which step of it this one goes on; then those of later steps and of other evaluations are dropped.
        """
        if resumed is None:
            self._set_aside()
        else:
            # Before recipe.json is written: it says how they were measured.
            self.forget(resumed if self._measured_alike(recipe) else None)
        self._write("recipe.json", recipe_file.to_dict(recipe))
        self._write("deepspeed.json", deepspeed)
        self._write("environment.json", environment)

    def add_start(self, start: dict[str, Any]) -> None:
        """Write down which weights of ``model.init`` the model took."""
        self._write("init.json", start)

    def add_classes(self, classes: list[str]) -> None:
        """Write down what the classes that labels count are called, in their order."""
        self._write("classes.json", classes)

    def classes(self) -> list[str]:
        """What ``add_classes`` wrote; none if it was not called.

        Raises:
            UserError: it cannot be read.
        """
        path = self.path / "classes.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: it cannot be read ({error})") from None
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise UserError(f"{path} is damaged: it is no list of names")
        if len(set(found)) < len(found):
            raise UserError(f"{path} is damaged: a class is in it twice")
        return found

    def evaluations(self) -> dict[str, dict[str, float]]:
        """What was measured so far, by title: "untrained", the baselines, "step 600"."""
        path = self.path / "evaluations.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def add_evaluation(self, title: str, metrics: dict[str, float]) -> None:
        self._write("evaluations.json", self.evaluations() | {title: metrics})

    def forget(self, step: int | None) -> None:
        """Drop the evaluations of steps after ``step``, or all."""
        known = self.evaluations()
        kept = {title: known[title] for title in known if step is not None and _step(title) <= step}
        if kept != known:
            self._write("evaluations.json", kept)

    def recover(self) -> list[str]:
        """Put right what a killed save has left; returns what the user should know."""
        lost = checkpoints.recover(self.checkpoints)
        return [f"damaged, set aside: {folder} has no {checkpoints.MANIFEST}" for folder in lost]

    def checkpoints_for(self, resume: str) -> list[Path]:
        """The checkpoints to try, in order: those here, newest first (auto), none (never), or the one of a path.

        Raises:
            UserError: ``never``, but the folder holds a training already; the path leads to no checkpoint, or the
                folder holds later ones, which would count as this training's newest.
        """
        found = checkpoints.find(self.checkpoints)
        if resume == "auto":
            return found[::-1]
        last = checkpoints.step_of(found[-1]) if found else -1
        if resume != "never":
            source = checkpoints.resolve(Path(resume))
            if found and checkpoints.read_manifest(source).step < last:
                raise UserError(
                    f"{self.path} holds later checkpoints (to step {last}) than {source}: choose another --output, "
                    f"or remove those in {self.checkpoints}"
                )
            return [source]
        if found:
            raise UserError(
                f"{self.path} holds a training already (to step {last}): choose another --output, "
                "or continue it with --resume auto"
            )
        return []

    def owns(self, source: Path) -> bool:
        """Whether a checkpoint is one of this run."""
        return source.resolve().parent == self.checkpoints.resolve()

    def _measured_alike(self, recipe: Recipe) -> bool:
        """Whether the numbers that are there were measured as this recipe measures."""
        try:
            saved = json.loads((self.path / "recipe.json").read_text(encoding="utf-8"))["eval"]
            own = json.loads(json.dumps(dataclasses.asdict(recipe.eval)))
            return all(saved[name] == own[name] for name in own if name not in _DRAWING)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _set_aside(self) -> None:
        """Rename the reports of an earlier training to .1, or the next number that is free for all of them."""
        number = 1
        while any((self.path / f"{name}.{number}").exists() for name in _REPORTS):
            number += 1
        for name in _REPORTS:
            if (self.path / name).exists():
                (self.path / name).rename(self.path / f"{name}.{number}")

    def _write(self, name: str, values: Any) -> None:
        """The whole file or none: one that is cut in the middle would stop every later start."""
        partial = self.path / f"{name}.partial"
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.path / name)


def _step(title: str) -> int:
    """Of "step 600" the number; what else was measured is older than any step."""
    return int(title[5:]) if title.startswith("step ") else -1
