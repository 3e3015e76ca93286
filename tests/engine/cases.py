"""What the ranks run. Each case is one engine, or a few, on the toy task; it returns what the tests look at."""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sam_ds.config.errors import UserError
from sam_ds.engine import checkpoint, distributed, replicas
from sam_ds.engine.checkpoint import moment_files
from sam_ds.engine.engine import Engine, StepResult
from sam_ds.engine.gradients import compare_gradients
from sam_ds.engine.preemption import Preempted, StopFlag
from tests.engine import toy


def batches(step: int, accumulation: int) -> list[toy.ToyBatch]:
    """This rank's micro-batches of a step: the global stream is dealt out rank by rank, then micro by micro."""
    world, rank = distributed.world_size(), distributed.rank()
    return [toy.batch((step * accumulation + micro) * world + rank) for micro in range(accumulation)]


def digest(state: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode() + state[name].contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def full(engine: Engine) -> dict[str, Tensor]:
    return engine.state_dict(everywhere=True)


def mean(engine: Engine) -> dict[str, Tensor]:
    return engine.mean_state_dict(everywhere=True)


def averaged(folder: Path, stage: int, precision: str) -> Any:
    """The mean of the weights of six steps, of which one is skipped and the first two are frozen, beside torch's."""
    decay = 0.8
    engine = Engine(NanLoss, toy.recipe(drop_path=0.3, frozen=2, ema=decay), toy.config(stage, precision))
    plain = [value.clone() for value in full(engine).values()]
    average = get_ema_multi_avg_fn(decay)
    skipped = []
    for step in range(6):
        skipped += [result.skipped for result in steps(engine, step, step + 1, 1)]
        if not skipped[-1]:
            average(plain, list(full(engine).values()), None)
    state, means = full(engine), mean(engine)
    trained = {name for name, parameter in engine.task.named_parameters() if parameter.requires_grad}
    evaluated = engine.inference_model().state_dict()
    kept = digest(full(engine)) == digest(state)
    engine.close()
    exact = {name: torch.equal(means[name], value) for name, value in zip(state, plain, strict=True)}
    return {
        "skipped": skipped,
        "differ": [name for name, equal in exact.items() if not equal],
        "own": [name for name in trained if torch.equal(means[name], state[name])],
        "weights_kept": kept,
        "evaluated": all(
            torch.equal(value, means[f"model.{name}"].to(value.dtype)) for name, value in evaluated.items()
        ),
    }


def own_digest(engine: Engine) -> str:
    """Of the weights that this rank itself computes with: ``full`` gathers, and so is alike on ranks that are not."""
    sharded = engine.config.zero_stage == 3
    own: dict[str, Tensor] = {}
    for name, parameter in engine.task.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            own[name] = parameter.data.detach().cpu().clone()
    return digest(own)


def drifted(folder: Path, stage: int) -> Any:
    """Digests of ranks of which one has changed a weight on its own, as by a gradient that the others lack."""
    engine = Engine(toy.ToyTask, toy.recipe(), toy.config(stage), paranoid=True)
    steps(engine, 0, 1, 1)
    before = own_digest(engine)
    if not distributed.is_main():
        engine.task.encoder.pos_embed.data.add_(1.0)
    after = own_digest(engine)
    said = ""
    try:
        steps(engine, 1, 2, 1)
    except replicas.ReplicaError as error:
        said = str(error)
    engine.close()
    return [before, after, said]


def steps(engine: Engine, start: int, end: int, accumulation: int) -> list[StepResult]:
    return [engine.train_step(batches(step, accumulation), step) for step in range(start, end)]


def parity(folder: Path, stage: int, accumulation: int, mode: str, offload: bool, precision: str = "fp32") -> Any:
    recipe = toy.recipe(mode, offload, drop_path=0.3)
    config = toy.config(stage, precision, accumulation)
    report = compare_gradients(toy.ToyTask, recipe, config, batches(0, accumulation))
    return {"errors": report.errors, "missing": report.missing, "passed": report.passed}


def curve(folder: Path, stage: int, accumulation: int, precision: str = "fp32") -> Any:
    """Losses and gradient norms of a few steps, and the names of the weights."""
    engine = Engine(toy.ToyTask, toy.recipe(drop_path=0.3), toy.config(stage, precision, accumulation))
    results = steps(engine, 0, 4, accumulation)
    losses = [distributed.mean_logs(r.logs)["loss/total"] for r in results]
    state = full(engine)
    names = sorted(engine.split_state(state)[0])
    buffer = str(engine.task.model.mask_decoder.gaussian.dtype)
    engine.close()
    sums = {name: float(value.double().abs().sum()) for name, value in state.items()}
    return {
        "losses": losses,
        "norms": [float(r.grad_norm) for r in results],
        "sums": sums,
        "names": names,
        "buffer": buffer,
    }


class NanLoss(toy.ToyTask):
    """On rank 1 in step 2: a loss that is NaN though its gradients are not."""

    def forward(self, inputs: toy.ToyInputs, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = super().forward(inputs, normalizer)
        return loss + (inputs.weights.sum() * torch.nan if inputs.weights[0] == 2 else 0.0), logs

    def prepare(self, batch: toy.ToyBatch, step: int) -> toy.ToyInputs:
        inputs = super().prepare(batch, step)
        bad = step == 2 and distributed.rank() == 1
        return toy.ToyInputs(inputs.x, inputs.kinds, inputs.weights * (2 if bad else 1))


class NanGradient(NanLoss):
    """On rank 1 in step 2: gradients that are not finite though the loss is."""

    def forward(self, inputs: toy.ToyInputs, normalizer: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = toy.ToyTask.forward(self, inputs, normalizer)
        if inputs.weights[0] == 2:
            loss = loss + (loss - loss.detach()).abs().sqrt()  # zero, with a slope of 0 times infinity
        return loss, logs


def not_finite(folder: Path, stage: int, precision: str, kind: str) -> Any:
    """Two good steps, a bad one, a good one; the accumulation is 2 and only one micro-batch's rank is bad."""
    task = {"loss": NanLoss, "gradient": NanGradient}[kind]
    engine = Engine(task, toy.recipe(), toy.config(stage, precision, 2))
    steps(engine, 0, 2, 2)
    before, moments = digest(full(engine)), optimizer_digest(engine)
    bad = engine.train_step(batches(2, 2), 2)
    after = digest(full(engine)), optimizer_digest(engine)
    good = engine.train_step(batches(3, 2), 3)
    final = full(engine)
    engine.close()
    return {
        "skipped": bad.skipped,
        "unchanged": (before, moments) == after,
        "goes_on": not good.skipped and digest(final) != before,
        "finite": all(bool(value.isfinite().all()) for value in final.values()),
    }


def optimizer_digest(engine: Engine) -> str:
    sha = hashlib.sha256()
    for state in engine.ds.basic_optimizer.state.values():
        for name in sorted(state):
            if isinstance(state[name], Tensor):
                sha.update(state[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def resume(folder: Path, stage: int, precision: str, frozen: int, half: int) -> Any:
    """Twenty steps straight, and ``half`` + the rest with a save and a load in another engine between."""
    recipe, config = toy.recipe(drop_path=0.3, frozen=frozen, ema=0.9), toy.config(stage, precision, 2)
    engine = Engine(toy.ToyTask, recipe, config)
    straight = [distributed.mean_logs(r.logs) for r in steps(engine, 0, 20, 2)]
    expected = digest(full(engine)), optimizer_digest(engine), digest(mean(engine))
    engine.close()

    engine = Engine(toy.ToyTask, recipe, config)
    first = [distributed.mean_logs(r.logs) for r in steps(engine, 0, half, 2)]
    saved = digest(full(engine))
    path = checkpoint.save(engine, folder / "checkpoints", half, score=0.5, progress={"pictures": 7})
    engine.close()
    torch.manual_seed(99)  # nothing may hang on what this process drew before
    engine = Engine(toy.ToyTask, recipe, config)
    engine.task.model.mask_decoder.gaussian.zero_()  # nor on buffers being drawn again alike
    manifest = checkpoint.load(engine, path)
    loaded = digest(full(engine))
    second = [distributed.mean_logs(r.logs) for r in steps(engine, half, 20, 2)]
    got = digest(full(engine)), optimizer_digest(engine), digest(mean(engine))
    own = own_digest(engine)
    engine.close()
    return {
        "weights": expected[0] == got[0],
        "optimizer": expected[1] == got[1],
        "mean": expected[2] == got[2] != got[0],
        "loaded": saved == loaded,
        "logs": straight == first + second,
        "manifest": [manifest.step, manifest.frozen, manifest.score, manifest.progress["pictures"]],
        "digest": own,
    }


def leg(folder: Path, root: Path, stage: int, precision: str, start: int, end: int) -> Any:
    """Steps ``start`` to ``end`` of a training of two pictures a step, from the checkpoint of another world."""
    accumulation = 2 // distributed.world_size()
    engine = Engine(toy.ToyTask, toy.recipe(drop_path=0.3, ema=0.9), toy.config(stage, precision, accumulation))
    if start:
        checkpoint.load(engine, root / f"step_{start:08d}")
    loaded = digest(full(engine)) + digest(mean(engine)), engine.ds.global_steps
    losses = [distributed.mean_logs(r.logs)["loss/total"] for r in steps(engine, start, end, accumulation)]
    checkpoint.save(engine, root, end)
    end_digest = digest(full(engine)) + digest(mean(engine))
    engine.close()
    return {"losses": losses, "loaded": loaded, "end": end_digest}


def frozen_phase(folder: Path, stage: int, precision: str) -> Any:
    engine = Engine(toy.ToyTask, toy.recipe(frozen=3), toy.config(stage, precision))

    def parts() -> list[str]:
        state = full(engine)
        encoder = {name: value for name, value in state.items() if "image_encoder" in name}
        return [digest(encoder), digest({name: value for name, value in state.items() if name not in encoder})]

    start = parts()
    steps(engine, 0, 3, 1)
    end = parts()
    engine.start_phase(False, full(engine))
    carried = parts()
    steps(engine, 3, 5, 1)
    after = parts()
    engine.close()
    return {
        "encoder_still": start[0] == end[0],
        "decoder_moves": start[1] != end[1],
        "carried": carried == end,
        "encoder_moves": after[0] != end[0],
    }


class Wider(toy.ToyTask):
    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self.model.mask_decoder.lin2 = nn.Linear(2 * toy.DIM, toy.DIM, bias=False)


def refuse(folder: Path) -> Any:
    """A checkpoint loaded where it does not belong, and a damaged one: the messages."""
    config = toy.config(2)
    engine = Engine(toy.ToyTask, toy.recipe(), config)
    path = checkpoint.save(engine, folder / "checkpoints", 0)
    engine.close()
    messages = {}
    others = {
        "seed": (toy.ToyTask, toy.recipe(seed=4), config),
        "model": (Wider, toy.recipe(), config),
        "batch": (toy.ToyTask, toy.recipe(), toy.config(2, accumulation=3)),
    }
    for name, (task, recipe, other) in others.items():
        messages[name] = _message(Engine(task, recipe, other), path)
    messages |= {name: _after(path, damage) for name, damage in DAMAGES.items()}
    messages["missing"] = _message(Engine(toy.ToyTask, toy.recipe(), config), folder / "checkpoints" / "step_00000007")
    return messages


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda folder: os.truncate(folder / "moments_00001.safetensors", 100),
    "flipped": lambda folder: _flip(folder / "moments_00001.safetensors"),
    "zeroed": lambda folder: (folder / "weights.safetensors").write_bytes(
        bytes((folder / "weights.safetensors").stat().st_size)
    ),
    "deleted": lambda folder: (folder / "random_00000.pt").unlink(),
    "manifest": lambda folder: _flip(folder / "complete.json"),
    "empty": lambda folder: os.truncate(folder / "complete.json", 0),
}


def _after(path: Path, damage: Callable[[Path], object]) -> str:
    """The message of a copy that was damaged."""
    engine = Engine(toy.ToyTask, toy.recipe(), toy.config(2))
    copy = path.with_name("step_00000099")
    if distributed.is_main():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        damage(copy)
    distributed.barrier()
    message = _message(engine, copy)
    distributed.barrier()
    return message


def full_disk(folder: Path) -> Any:
    """A save in which one rank's disk is full, or rank 0 cannot commit: what is said, what is left, and the next."""
    engine = Engine(toy.ToyTask, toy.recipe(), toy.config(2))
    root = folder / "checkpoints"
    first = checkpoint.save(engine, root, 0)
    said = []
    saving = importlib.import_module("sam_ds.engine.checkpoint.save")  # the package's own ``save`` is the function
    for rank, module, name in ((1, moment_files, "write"), (0, saving, "commit")):
        whole = getattr(module, name)
        if distributed.rank() == rank:
            setattr(module, name, _no_space)
        try:
            checkpoint.save(engine, root, 1)
        except checkpoint.SaveError as error:
            said.append(str(error))
        setattr(module, name, whole)
    checkpoint.load(engine, first)
    steps(engine, 0, 1, 1)
    checkpoint.save(engine, root, 1)
    engine.close()
    return {"said": said, "left": sorted(path.name for path in root.iterdir())}


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def asked(folder: Path, who: int) -> Any:
    """Rank ``who`` gets a signal: what each rank sees, and when all stop."""
    stop = StopFlag()
    stop.listen()
    stop.check()  # nobody was asked
    before = stop.seen()
    distributed.barrier()
    if distributed.rank() == who:
        os.kill(os.getpid(), signal.SIGUSR1)
        stop.seen()
    distributed.barrier()
    seen = list(stop.until_seen(range(3)))
    try:
        stop.check()
    except Preempted:
        return {"before": before, "items": seen, "stopped": True}
    return {"before": before, "items": seen, "stopped": False}


def _message(engine: Engine, path: Path) -> str:
    try:
        checkpoint.load(engine, path)
    except UserError as error:
        return str(error)
    finally:
        engine.close()
    return ""
