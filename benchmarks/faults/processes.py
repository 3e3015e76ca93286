"""Processes that are killed, stopped, hang, or are asked to end."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from faults.injection import ALL, Fault
from faults.lab import TIMEOUT, Lab, Row, counted, going_on_from, spread, steps_done
from faults.lives import SAVE_EVERY, STEPS, live, losses, newest, samples, survive, weights


def undisturbed(lab: Lab) -> Iterator[Row]:
    """Else "bit-exact" above would be no wonder, or mean nothing."""
    again, other = lab.training(), lab.training(settings=("seed=1",))
    outcomes = {"two runs end alike": [live(again).finished and lab.exact(again)]}
    live(other)
    outcomes["another seed ends otherwise"] = [weights(other) != weights(lab.reference)]
    lab.forget(other)
    yield from counted("no fault", outcomes)


def killed_ranks(lab: Lab) -> Iterator[Row]:
    ended, exact, lost, detected = [], [], [], []
    for seed in range(max(lab.trials, 3)):
        rng = random.Random(seed)
        part = ("forward", "backward", "step")[seed % 3]
        fault = Fault("kill", seed // 3 % 2, rng.randrange(1, STEPS), part, delay=rng.uniform(0, 0.02))
        training = lab.training()
        lives = survive(training, [fault])
        detected.append(lives[0].ends[1 - fault.rank] - lives[0].fault)
        lost.append(fault.step - going_on_from(lives[1]))
        ended.append(lab.held(lives[-1].finished and len(lives) == 2, fault, lives[-1]))
        exact.append(lab.exact(training))
    name = "kill -9 of a rank in forward, backward, step"
    yield from counted(name, {"went on by itself": ended, "ended bit-exact": exact})
    yield Row(name, "the other rank has ended, s, median (max)", spread(detected), "", True, len(detected))
    most = 2 * SAVE_EVERY  # the newest checkpoint may be under way
    yield Row(
        name,
        "steps lost, max",
        str(max(lost)),
        f"≤ {most}: interval of {SAVE_EVERY} + one under way",
        max(lost) <= most,
        len(lost),
    )


def stopped_ranks(lab: Lab) -> Iterator[Row]:
    for what, name, trials in (
        ("stop", "SIGSTOP of a rank", lab.trials),
        ("hang", "a rank's main thread hangs", lab.few),
    ):
        named, noticed, exact = [], [], []
        for seed in range(trials):
            rng = random.Random(seed)
            fault = Fault(what, seed % 2, rng.randrange(1, STEPS), rng.choice(("forward", "backward", "step")))
            training = lab.training(options=("--timeout", str(TIMEOUT)))
            first = live(training, fault)
            stacks = training.output / f"stacks_rank_{1 - fault.rank:05d}.txt"
            noticed.append((stacks.stat().st_mtime if stacks.exists() else float("inf")) - first.fault)
            named.append(lab.held(f"watchdog: rank {fault.rank} " in first.said, fault, first))
            last = survive(training, [])[-1]
            exact.append(lab.held(last.finished and lab.exact(training), fault, last))
        yield from counted(name, {"the rank is named": named, "ended bit-exact": exact})
        goal = TIMEOUT + 5
        figure = f"noticed after s, median (max), timeout {TIMEOUT:g} s"
        yield Row(name, figure, spread(noticed), f"≤ {goal:g}", max(noticed) <= goal, len(noticed))


def asked_to_stop(lab: Lab) -> Iterator[Row]:
    committed, exact, lost, seconds = [], [], [], []
    phases = ("forward", "backward", "step", "data", "save", "evaluation", "start")
    for seed in range(max(lab.trials, len(phases))):
        rng = random.Random(seed)
        when, rank = phases[seed % len(phases)], (0, 1, ALL)[seed // len(phases) % 3]
        step, operation = rng.randrange(1, STEPS - 1), rng.randrange(1)
        fault = {
            "save": Fault("term", rank, 4, "save", rng.randrange(4)),
            # Baselines and the untrained model come first, a batch each; then step 4's and 8's.
            "evaluation": Fault("term", rank, 0, "evaluation", rng.randrange(5)),
            "start": Fault("term", rank, 0, "start", delay=rng.uniform(0, 1.0)),
        }.get(when, Fault("term", rank, step, when, operation, rng.uniform(0, 0.02)))
        training = lab.training(settings=("train.eval_every=4",))
        first = live(training, fault)
        whole = first.preempted and newest(training) == steps_done(first)
        committed.append(lab.held(whole, fault, first))
        lost.append(steps_done(first) - newest(training))
        seconds.append(max(first.ends) - first.fault)
        exact.append(survive(training, [])[-1].finished and lab.exact(training))
    name = "SIGTERM to one rank or all, in start-up, data, forward, backward, step, save, evaluation"
    yield from counted(name, {"committed, exit 0": committed, "ended bit-exact": exact})
    yield Row(name, "steps lost, max", str(max(lost)), "0", max(lost) == 0, len(lost))
    yield Row(name, "ended after s, median (max)", spread(seconds), "", True, len(seconds))


def killed_workers(lab: Lab) -> Iterator[Row]:
    went_on, exact = [], []
    for seed in range(lab.trials):
        rng = random.Random(seed)
        training = lab.training(settings=("data.workers=2",))
        fault = Fault("kill_worker", seed % 2, rng.randrange(1, STEPS), rng.choice(("forward", "backward", "data")))
        lives = survive(training, [fault])
        went_on.append(lab.held(len(lives) == 1 and lives[0].finished, fault, lives[0]))
        exact.append(lab.exact(training))
    yield from counted("kill -9 of a data-loader worker", {"no hang, no restart": went_on, "ended bit-exact": exact})


def other_worlds(lab: Lab) -> Iterator[Row]:
    whole, differences = [], []
    expected, known = samples(lab.reference), losses(lab.reference)
    for seed in range(lab.few):
        rng = random.Random(seed)
        training = lab.training(stage=rng.choice((2, 3)))
        first, second = rng.randrange(2, 5), rng.randrange(6, 10)
        lives = [live(training, Fault("term", ALL, first))]
        lives.append(live(dataclasses.replace(training, world=1), Fault("term", 0, second)))
        lives.append(live(training))
        whole.append(
            all(life is not None and (life.finished or life.preempted) for life in lives)
            and samples(training) == expected
        )
        differences.append(max(abs(loss - known[step]) for step, loss in losses(training).items()))
        lab.forget(training)
    name = "2 → 1 → 2 ranks"
    yield from counted(name, {"the same samples and draws": whole})
    yield Row(
        name,
        "largest difference of a loss",
        f"{max(differences):.1e}",
        "≤ 1e-4",
        max(differences) <= 1e-4,
        len(differences),
    )


def crash_loops(lab: Lab) -> Iterator[Row]:
    stopped, starts = [], []
    for seed in range(lab.few):
        training = lab.training()
        fault = Fault("kill", seed % 2, 5, "backward")
        lives = survive(training, [fault] * 10)
        refused = 2 in lives[-1].codes and "without reaching another checkpoint" in lives[-1].said
        stopped.append(lab.held(refused, fault, lives[-1]))
        starts.append(len(lives) - 2)  # without the first, which reached a checkpoint, and the one that was refused
        lab.forget(training)
    name = "a crash loop: killed at the same step every time"
    yield from counted(name, {"stopped with its reason": stopped})
    yield Row(name, "starts without progress before that", str(max(starts)), "3", set(starts) == {3}, len(starts))
