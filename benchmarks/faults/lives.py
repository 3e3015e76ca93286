"""Trainings that meet faults: a life is one start of all ranks, until the last of them has ended.

The ranks run the real command on a SAM of 128 pixels. They are forked from a process that has imported everything, so
that a life costs a second and not ten; what the launcher itself does is tried with the real one (launcher.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.injection import Fault, Injector

STEPS, SAVE_EVERY = 12, 2
_SETTINGS = (
    "model.preset=small",
    "data.workers=0",
    "curriculum.parts=1.0",
    "curriculum.crop_sizes=32",
    "curriculum.max_masks=2",
    "curriculum.correction_rounds=1",
    "eval.clicks=1",
    "eval.box=false",
    "eval.max_pictures=2",
    "eval.max_masks=2",
    "eval.pictures=0",
    f"train.steps={STEPS}",
    "train.log_every=1",
    f"train.save_every={SAVE_EVERY}",
    "tracking.mlflow=false",
)
_PATIENCE = 120.0  # seconds that a life may take

_context = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Training:
    """One training: its folder and how it is started, again and again."""

    output: Path
    data: Path
    settings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    world: int = 2
    stage: int = 2  # of ZeRO
    environment: dict[str, str] = field(default_factory=dict)

    def samples(self, rank: int) -> Path:
        """Beside its folder, whose disk may be full."""
        return self.output.with_name(f"{self.output.name}_samples_{rank}.jsonl")

    def config(self) -> Path:
        """The DeepSpeed config of its stage and world, written if it is not there."""
        path = self.data.parent / f"zero{self.stage}_{self.world}.json"
        if not path.exists():
            path.write_text(json.dumps(_config(self.stage, self.world)))
        return path

    def arguments(self) -> list[str]:
        settings = [word for setting in (*_SETTINGS, *self.settings) for word in ("--set", setting)]
        where = ["--deepspeed_config", str(self.config()), "--data", str(self.data), "--output", str(self.output)]
        return ["train", "--recipe", "tiny", *where, *settings, *self.options]


def _config(stage: int, world: int) -> dict[str, Any]:
    """Two pictures a step, on any number of ranks."""
    return {
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2 // world,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
    }


@dataclass(frozen=True)
class Life:
    """How one start of a training went."""

    codes: list[int]  # of the ranks' processes; negative: the signal that killed it
    ends: list[float]  # when each ended, seconds since 1970
    fault: float  # when the fault came, or 0
    seconds: float
    said: str

    @property
    def finished(self) -> bool:
        return all(code == 0 for code in self.codes) and "preempted" not in self.said

    @property
    def preempted(self) -> bool:
        return all(code == 0 for code in self.codes) and "preempted" in self.said


def live(training: Training, fault: Fault | None = None, most: float = _PATIENCE) -> Life:
    """Start the training, and wait until all of its ranks have ended.

    Args:
        most: seconds after which rank 0 is asked to stop. One that cannot is killed, some time later.
    """
    training.output.mkdir(parents=True, exist_ok=True)
    training.output.with_suffix(".fault").unlink(missing_ok=True)
    training.config()  # before the ranks look for it
    port = _free_port()
    log = training.output.with_suffix(".log")
    log.write_text("")
    ranks = [_context.Process(target=_rank, args=(training, fault, rank, port, log)) for rank in range(training.world)]
    began = time.time()
    for process in ranks:
        process.start()
    ends = _wait(ranks, began, training.output.parent / "ballast", most)
    noted = training.output.with_suffix(".fault")
    return Life(
        codes=[process.exitcode or 0 for process in ranks],
        ends=ends,
        fault=float(noted.read_text() or 0) if noted.exists() else 0.0,
        seconds=time.time() - began,
        said=log.read_text(errors="replace"),
    )


def _wait(ranks: Sequence[Any], began: float, ballast: Path, most: float) -> list[float]:
    """When each rank ended. As a launcher does, kill the others a while after one has failed. Frees a full disk."""
    ends, asked = [0.0] * len(ranks), False
    while not all(ends):
        now = time.time()
        if now - began > most and not asked:
            ranks[0].terminate()
            asked = True
        for number, process in enumerate(ranks):
            if not ends[number] and process.exitcode is not None:
                ends[number] = now
        failed = [end for end, process in zip(ends, ranks, strict=True) if end and process.exitcode]
        if now - began > most + _PATIENCE or (failed and now - min(failed) > 5):
            for process in ranks:
                process.kill()
        if ballast.exists() and now - ballast.stat().st_mtime > 1.5:
            ballast.unlink()
        time.sleep(0.01)
    return ends


def survive(training: Training, faults: Sequence[Fault | None], most: int = 6) -> list[Life]:
    """Start the training again until it has finished, as a scheduler does; the n-th life meets the n-th fault."""
    lives: list[Life] = []
    while len(lives) < max(most, len(faults)):
        lives.append(live(training, faults[len(lives)] if len(lives) < len(faults) else None))
        if lives[-1].finished or 2 in lives[-1].codes:
            break
    return lives


def _rank(training: Training, fault: Fault | None, rank: int, port: int, log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": training.world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | training.environment
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    import torch

    from sam_ds.cli.main import main
    from sam_ds.config import signals
    from sam_ds.modeling.presets import PRESETS

    torch.set_num_threads(1)
    PRESETS["small"] = dataclasses.replace(PRESETS["tiny"], image_size=128, window_size=4)
    signals.hold()  # as the command does, before any thread is there that could take one
    _record_samples(training.samples(rank))
    if fault is not None:
        Injector(fault, rank, training.output).arm()
    sys.exit(main(training.arguments()))


def _record_samples(path: Path) -> None:
    """Note what every step is trained on: places in the stream, pictures, masks, and the pixels they became."""
    from sam_ds.data.loader import TrainLoader

    steps = TrainLoader.steps

    def recorded(self: TrainLoader, start: int, left_out: int = 0) -> Iterator[Any]:
        with path.open("a", encoding="utf-8") as file:
            for step, batches in enumerate(steps(self, start, left_out), start):
                rows = [_row(batch, i) for batch in batches for i in range(len(batch))]
                file.write(json.dumps({"step": step, "rows": rows}) + "\n")
                file.flush()
                yield batches

    TrainLoader.steps = recorded  # type: ignore[method-assign]


def _row(batch: Any, i: int) -> list[Any]:
    pixels = hashlib.sha256(batch.images[i].numpy().tobytes()).hexdigest()[:16]
    return [int(batch.positions[i]), int(batch.sample_ids[i]), batch.mask_ids[batch.picture == i].tolist(), pixels]


def samples(training: Training) -> dict[int, list[Any]]:
    """For each step what all ranks together were trained on, in the order of the stream; the last time it was."""
    seen: dict[int, dict[int, list[Any]]] = {}
    for path in sorted(training.output.parent.glob(f"{training.output.name}_samples_*.jsonl")):
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                row = json.loads(line)
                seen.setdefault(row["step"], {}).update({place[0]: place for place in row["rows"]})
    return {step: [rows[place] for place in sorted(rows)] for step, rows in seen.items() if step < STEPS}


def weights(training: Training, step: int = STEPS) -> dict[str, str]:
    """Hashes of all weights and moments of a checkpoint."""
    from sam_ds.storage.checkpoints import read_manifest, step_folder

    files = read_manifest(step_folder(training.output / "checkpoints", step)).files
    return {name: values["sha256"] for name, values in files.items() if name.endswith(".safetensors")}


def losses(training: Training) -> dict[int, float]:
    """The mean loss over the ranks of every step."""
    from sam_ds.tracking.journal import read_metrics

    return {
        int(row["step"]): row["loss/total"]
        for row in read_metrics(training.output / "metrics.jsonl")
        if "loss/total" in row
    }


def same(training: Training, reference: Training) -> bool:
    """Whether a training has ended as the undisturbed one, to the last bit, on the same samples and draws."""
    return (
        newest(training) == STEPS
        and weights(training) == weights(reference)
        and samples(training) == samples(reference)
        and losses(training) == losses(reference)
    )


def newest(training: Training) -> int:
    """The step of the newest whole checkpoint, or 0."""
    from sam_ds.storage import checkpoints

    found = checkpoints.find(training.output / "checkpoints")
    return checkpoints.step_of(found[-1]) if found else 0


def copy(training: Training, output: Path) -> Training:
    """The same training with a copy of its folder."""
    copied = dataclasses.replace(training, output=output)
    shutil.copytree(training.output, output)
    for rank in range(training.world):
        shutil.copy(training.samples(rank), copied.samples(rank))
    return copied


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def nursery() -> Iterator[None]:
    """Where lives can be started: ends the process that forks them."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    folders = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))  # for the process that forks
    _context.set_forkserver_preload(["faults.preloaded"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    yield
