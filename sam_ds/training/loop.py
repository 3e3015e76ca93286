"""The training loop."""

from __future__ import annotations

from sam_ds.engine import distributed
from sam_ds.engine.preemption import Preempted, stop
from sam_ds.training.run import Run
from sam_ds.training.state import TrainState


def train(run: Run) -> TrainState:
    """Train from where the run stands to its last step, or to where all ranks agree to stop; every rank calls it.

    Raises:
        UserError: the numbers go wrong again and again, or too many pictures are bad.
        Preempted: the job was asked to stop; what was trained is saved.
    """
    state, last = run.state, run.recipe.train.steps
    try:
        run.evaluations.measure_baselines(run.engine, run.progress.say)
        if _due(state.step, run.recipe.train.eval_every, last) or state.step == 0:  # if that was not come to
            run.saver.add_score(state.step, run.evaluate(state))
        stop.check()
        with run.progress:
            while state.step < last:
                state, trouble = _train(run, state)
                if trouble:
                    state = run.rewind(state, trouble)
    except Preempted:
        run.saver.finish()
        raise Preempted(f"preempted at step {run.saver.saved_step}") from None
    # The others wait: a rank that has ended would be missed.
    run.progress.say(distributed.on_main(lambda: run.evaluations.report(state.step)))
    return state


def _train(run: Run, state: TrainState) -> tuple[TrainState, str]:
    """Train to the last step, or to where the numbers go wrong: then why they do."""
    train, trouble, evaluate, save = run.recipe.train, "", False, False
    pictures = run.engine.config.global_batch(distributed.world_size())
    run.meter.restart()
    stream = run.loader.steps(state.step, state.left_out)
    try:
        for step, batches in zip(range(state.step, train.steps), stream, strict=False):
            stop.ask(busy=run.saver.busy())
            result = run.engine.train_step(batches, step)
            state = state.after(pictures, result.skipped)
            run.meter.add(result, pictures, run.kit.rounds(run.recipe, step))
            run.progress.advance()
            trouble = run.health.after_step(state)
            log, measure, now = (
                _due(state.step, every, train.steps) for every in (train.log_every, train.eval_every, train.save_every)
            )
            evaluate, save = evaluate or measure, save or now
            if log or measure or now or trouble:
                trouble = run.log(state) or trouble
            if not stop.answer():  # no rank is busy with a checkpoint
                trouble = run.saver.finish() or trouble
            # Not in the middle of skipped steps: a rewind would lead back there. What is saved is what was measured.
            if not trouble and (not result.skipped or state.step == train.steps):
                score = run.evaluate(state) if evaluate else None
                if save or (evaluate and train.keep_best and run.evaluations.is_best(score)):
                    trouble = run.save(state, score)
                evaluate = save = False
            if trouble:
                return state, trouble
        return state, run.saver.finish()
    except Preempted:
        if not trouble and state.step != run.saver.last_step:
            run.save(state, None)
        raise


def _due(step: int, every: int, last: int) -> bool:
    """Whether something that comes ``every`` so many steps (0: never) and after the last comes now."""
    return step == last or (every > 0 and step % every == 0)
