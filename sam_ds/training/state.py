"""What a training counts, and the folder it leaves behind."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_ds.config import recipe_file
from sam_ds.config.errors import UserError
from sam_ds.config.schema import Recipe
from sam_ds.engine import checkpoint


@dataclass(frozen=True)
class TrainState:
    """How far a training is. A checkpoint holds it."""

    step: int = 0  # optimizer steps done, skipped ones among them
    pictures: int = 0  # seen, by all ranks
    skipped: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0

    def after(self, pictures: int, skipped: bool) -> TrainState:
        """The state after one more step."""
        return TrainState(
            step=self.step + 1,
            pictures=self.pictures + pictures,
            skipped=self.skipped + skipped,
            skipped_in_a_row=self.skipped_in_a_row + 1 if skipped else 0,
        )

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

    def create(self, recipe: Recipe, deepspeed: dict[str, Any], environment: dict[str, Any]) -> None:
        """Make the folder and write down what is about to be trained, how, and on what."""
        self.path.mkdir(parents=True, exist_ok=True)
        recipe_file.save(recipe, self.path / "recipe.json")
        self._write("deepspeed.json", deepspeed)
        self._write("environment.json", environment)

    def evaluations(self) -> dict[str, dict[str, float]]:
        """What was measured so far, by title: "untrained", the baselines, "step 600"."""
        path = self.path / "evaluations.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def add_evaluation(self, title: str, metrics: dict[str, float]) -> None:
        self._write("evaluations.json", self.evaluations() | {title: metrics})

    def checkpoint_for(self, resume: str) -> Path | None:
        """The checkpoint to go on from: of ``auto`` the newest here, of ``never`` none, else that of the path.

        Raises:
            UserError: ``never``, but the folder holds a training already; or the path leads to no checkpoint.
        """
        found = checkpoint.find(self.checkpoints)
        if resume == "auto":
            return found[-1] if found else None
        if resume != "never":
            return checkpoint.resolve(Path(resume))
        if found:
            raise UserError(
                f"{self.path} holds a training already (to step {int(found[-1].name[5:])}): choose another --output, "
                "or continue it with --resume auto"
            )
        return None

    def _write(self, name: str, values: Any) -> None:
        (self.path / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
