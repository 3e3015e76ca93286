"""The training loop."""

from __future__ import annotations

from sam_ds.config.errors import UserError
from sam_ds.engine import distributed
from sam_ds.engine.preemption import Preempted, stop
from sam_ds.training.run import Run
from sam_ds.training.state import TrainState

# fp16 looks for its loss scale by skipping steps, some 20 at most; more in a row do not mend themselves.
MAX_SKIPPED_IN_A_ROW = 50


def train(run: Run) -> TrainState:
    """Train from where the run stands to its last step, or to where all ranks agree to stop; every rank calls it.

    Raises:
        UserError: the loss stays not finite, or too many pictures are bad.
        Preempted: the job was asked to stop; what was trained is saved.
    """
    train, state = run.recipe.train, run.state
    pictures = run.engine.config.global_batch(distributed.world_size())
    try:
        run.evaluations.measure_baselines(run.engine, run.progress.say)
        if state.step == 0 or state.step >= train.steps:  # before the first step, and where none is left to do
            run.evaluate(state)
        stop.check()
        run.meter.restart()
        with run.progress:
            for step, batches in zip(range(state.step, train.steps), run.loader.steps(state.step), strict=False):
                stop.ask()
                result = run.engine.train_step(batches, step)
                state = state.after(pictures, result.skipped)
                _check(state)
                run.meter.add(result, pictures, run.kit.rounds(run.recipe, step))
                run.progress.advance()
                evaluate, save = (
                    _due(state.step, every, train.steps) for every in (train.eval_every, train.save_every)
                )
                if evaluate or save or _due(state.step, train.log_every, train.steps):
                    run.log(state)
                stop.answer()
                score = run.evaluate(state) if evaluate else None
                if save or (evaluate and train.keep_best and run.evaluations.is_best(score)):
                    run.save(state, score)
    except Preempted:
        if state != run.state:
            run.save(state, None)
        raise Preempted(f"preempted at step {state.step}") from None
    if distributed.is_main():
        run.progress.say(run.evaluations.report(state.step))
    return state


def _due(step: int, every: int, last: int) -> bool:
    """Whether something that comes ``every`` so many steps (0: never) and after the last comes now."""
    return step == last or (every > 0 and step % every == 0)


def _check(state: TrainState) -> None:
    if state.skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
        raise UserError(
            f"the loss or its gradient was not finite in {state.skipped_in_a_row} steps in a row, up to step "
            f"{state.step}: lower optim.lr, or train in bf16 or fp32 instead of fp16"
        )
