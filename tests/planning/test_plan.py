"""sam-ds plan: what it says, what it advises, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sam_ds import recipes
from sam_ds.cli.main import main
from sam_ds.cli.plan import spread
from sam_ds.config import curriculum, deepspeed
from sam_ds.config.errors import UserError
from sam_ds.config.schema import CurriculumConfig, Recipe
from sam_ds.planning import machines
from sam_ds.planning.advice import advise
from sam_ds.planning.machines import Gpu
from sam_ds.planning.plan import Plan, Tracer, make_plan
from sam_ds.planning.report import CLAIMS, to_json, to_text
from sam_ds.planning.step_time import communication

A100 = machines.GPUS["A100-80"]


def plan_of(config: str, tracer: Tracer, gpu: Gpu = A100, world: int = 2) -> Plan:
    return make_plan(recipes.get("tiny"), deepspeed.load(config), gpu, world, tracer)


def test_it_adds_up(gpu_tracer: Tracer) -> None:
    plan = plan_of("zero2_local.json", gpu_tracer)
    assert plan.batch == 8 and plan.steps == 500
    assert plan.hours * 3600 == pytest.approx(500 * 8 / plan.pictures_per_second)
    assert plan.dollars == pytest.approx(plan.hours * 2 * A100.price)
    assert plan.needed == plan.memory.total + plan.reserve
    assert plan.checkpoint_bytes == 12 * plan.parameters
    assert 0 < plan.utilization < 1 and plan.fits and plan.workers >= 1
    # The stage with the largest crops needs the most, and it is the shortest: the step's time is a mean.
    no_wait = dataclasses.replace(A100, call=0.0)
    plan = plan_of("zero2_local.json", gpu_tracer, no_wait)
    stages = [make_plan(stage, plan.config, no_wait, 2, gpu_tracer) for stage in _alone(plan.recipe)]
    assert plan.memory.total == max(stage.memory.total for stage in stages) == stages[-1].memory.total
    assert stages[0].step_seconds < plan.step_seconds < stages[-1].step_seconds


def _alone(recipe: Recipe) -> list[Recipe]:
    """The stages of its curriculum, each for the whole training."""
    return [dataclasses.replace(stage, curriculum=CurriculumConfig()) for _, stage in curriculum.stages(recipe)]


def test_what_the_ranks_send(gpu_tracer: Tracer) -> None:
    recipe = recipes.get("tiny")
    trace = gpu_tracer(recipe, 1, "bf16")
    size = sum(trace.sizes.values())
    second, third = deepspeed.load("zero2_a100x256.json"), deepspeed.load("zero3_local.json")
    assert communication(trace, second, 256) == {"gradients": 2 * 4 * size, "weights": 2 * size}
    assert communication(trace, third, 256) == {"gradients": 4 * size, "weights": 2 * size}
    assert communication(trace, second, 1) == {}


def test_what_does_not_fit_gets_three_ways_that_do(gpu_tracer: Tracer) -> None:
    tiny = recipes.get("tiny")
    many_masks = dataclasses.replace(tiny.data, max_masks=32)
    recipe = dataclasses.replace(tiny, data=many_masks, curriculum=CurriculumConfig())
    roomy = make_plan(recipe, deepspeed.load("zero2_local.json"), A100, 2, gpu_tracer)
    small = dataclasses.replace(A100, name="A100-40", memory=0.9 * roomy.memory.total, reserve=0, fragments=0)
    plan = make_plan(recipe, roomy.config, small, 2, gpu_tracer)
    assert not plan.fits
    advice = advise(plan, gpu_tracer)
    assert len(advice) == 3 and all(x.plan.fits for x in advice)
    assert [x.plan.gpu.name for x in advice[:2]] == ["A100-40"] * 2  # what can be set comes before what can be bought
    ranks = [("max_masks" in x.text, x.plan.hours) for x in advice[:2]]
    assert ranks == sorted(ranks)  # what changes nothing of the training comes first
    assert len({x.text for x in advice}) == 3
    assert {x.plan.batch for x in advice} == {plan.batch}
    text = to_text(plan, advice)
    assert "IT DOES NOT FIT" in text and advice[0].text in text
    assert json.loads(json.dumps(to_json(plan, advice)))["fits"] is False


def test_half_a_micro_batch_may_be_too_much_too(gpu_tracer: Tracer) -> None:
    recipe = dataclasses.replace(recipes.get("tiny"), curriculum=CurriculumConfig())
    raw, plans = deepspeed.load("zero2_local.json").raw, {}
    for micro in (1, 2, 4):
        keys = {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": 4 // micro}
        plans[micro] = make_plan(recipe, deepspeed.parse(raw | keys), A100, 2, gpu_tracer)
    memory = (plans[1].memory.total + plans[2].memory.total) / 2
    small = dataclasses.replace(A100, name="small", memory=memory, reserve=0, fragments=0)
    plan = make_plan(recipe, plans[4].config, small, 2, gpu_tracer)
    advice = advise(plan, gpu_tracer)
    assert not plan.fits and all(x.plan.fits for x in advice)
    quarter = [x.text for x in advice if "micro batch 1 " in x.text]
    assert quarter == ["micro batch 1 × accumulation 4"]  # enough by itself: with nothing else


def test_what_fits_is_only_made_faster(gpu_tracer: Tracer) -> None:
    raw = deepspeed.load("zero2_local.json").raw | {"train_micro_batch_size_per_gpu": 2}
    config = deepspeed.parse(raw | {"gradient_accumulation_steps": 2})
    plan = make_plan(recipes.get("tiny"), config, A100, 2, gpu_tracer)
    advice = advise(plan, gpu_tracer)
    assert advice[0].text == "micro batch 4 × accumulation 1"  # the host is what a small model waits for
    assert all(x.plan.hours < plan.hours and x.plan.fits for x in advice)
    assert not any("max_masks" in x.text for x in advice)


def test_claims_are_of_recipes() -> None:
    assert set(CLAIMS) <= set(recipes.RECIPES)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.png"
    options = ["plan", "--recipe", "tiny", "--deepspeed_config", "zero2_a100x128.json", "--picture", str(picture)]
    assert main([*options, "--nodes", "1,2,16", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["gpus"], row["batch"]) for row in rows] == [(8, 128), (16, 128), (128, 128)]
    assert picture.stat().st_size > 10_000
    assert main([*options, "--price", "7"]) == 0
    assert "at $7 an hour" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "A100-8"], "did you mean A100-80"),
        (["--gpu", "nothing.json"], "cannot read it"),
        (["--nodes", "0"], "give numbers from 1"),
        (["--nodes", "1,x"], "give numbers from 1"),
        (["--nodes", "3"], "does not divide among 24 GPUs"),
        (["--nodes", "2", "--hostfile", "hosts"], "give one of them"),
        (["--picture", "plan.gif"], "name a .png"),
        (["--picture", "/not/there/plan.png"], "there is no folder /not/there"),
        (["--price", "-3"], "no number of dollars"),
        (["--price", "nan"], "no number of dollars"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--recipe", "tiny", "--deepspeed_config", "zero2_a100x128.json", *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_batch_that_hosts_cannot_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hosts").write_text("a slots=8\nb slots=8\n")
    hosts = ["--hostfile", str(tmp_path / "hosts")]
    assert main(["plan", "--recipe", "tiny", "--deepspeed_config", "zero2_a100x128.json", *hosts]) == 2
    assert "16 ranks" in capsys.readouterr().err


def test_hosts_of_one_gpu_meet_on_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name, text in {"one": "a slots=8\n", "eight": "".join(f"h{i} slots=1\n" for i in range(8))}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / "eight.json").write_text(
            json.dumps(deepspeed.load("zero2_local.json").raw | {"train_batch_size": 32})
        )
        options = ["--deepspeed_config", str(tmp_path / "eight.json"), "--hostfile", str(tmp_path / name), "--json"]
        assert main(["plan", "--recipe", "tiny", *options]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert (found["one"]["nodes"], found["eight"]["nodes"]) == (1, 8)
    assert found["eight"]["step_seconds"]["communication"] > found["one"]["step_seconds"]["communication"]


def test_a_config_without_a_batch_goes_anywhere() -> None:
    raw = {key: value for key, value in deepspeed.load("zero2_local.json").raw.items() if key != "train_batch_size"}
    assert spread(deepspeed.parse(raw), 16).global_batch(16) == 64


def test_the_frozen_start_counts(gpu_tracer: Tracer) -> None:
    recipe, config = recipes.get("tiny"), deepspeed.load("zero2_local.json")
    rests = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, frozen_encoder_steps=400))
    no_wait = dataclasses.replace(A100, call=0.0)
    trained, rested = (make_plan(x, config, no_wait, 2, gpu_tracer) for x in (recipe, rests))
    assert rested.hours < 0.95 * trained.hours and rested.memory.total == trained.memory.total
    assert rested.parameters == trained.parameters


def test_what_is_not_planned_is_said(gpu_tracer: Tracer) -> None:
    raw = deepspeed.load("zero3_local.json").raw
    hierarchical = deepspeed.parse(
        raw | {"zero_optimization": raw["zero_optimization"] | {"zero_hpz_partition_size": 8}}
    )
    plan = make_plan(recipes.get("tiny"), hierarchical, A100, 2, gpu_tracer)
    assert "not in the plan: zero_hpz_partition_size" in to_text(plan, [])
    assert "not in the plan" not in to_text(plan_of("zero3_local.json", gpu_tracer), [])
    with pytest.raises(UserError, match="stage 1 is not planned"):
        make_plan(recipes.get("tiny"), deepspeed.parse(raw | {"zero_optimization": {"stage": 1}}), A100, 2, gpu_tracer)


def test_whole_pictures_need_loaders_too(gpu_tracer: Tracer) -> None:
    plan = make_plan(recipes.get("mae_tiny"), deepspeed.load("zero2_local.json"), A100, 2, gpu_tracer)
    assert plan.workers is not None and plan.workers >= 1
    assert f"{plan.workers} loader process(es)" in to_text(plan, [])


def test_what_is_taken_for_given_is_said(gpu_tracer: Tracer) -> None:
    raw = deepspeed.load("zero2_local.json").raw
    beside = deepspeed.parse(raw | {"zero_optimization": {"stage": 2, "overlap_comm": True}})
    said = to_text(make_plan(recipes.get("tiny"), beside, A100, 2, gpu_tracer), [])
    assert "assumed: communication runs beside 50% of the computing" in said
    said = to_text(plan_of("zero3_offload_a100x8.json", gpu_tracer, world=8), [])
    assert "assumed: AdamW on the host moves 20 GB/s a GPU" in said
    assert "assumed: " not in to_text(plan_of("zero2_local.json", gpu_tracer), [])


def test_a_measured_gpu_is_a_file(tmp_path: Path) -> None:
    path, values = tmp_path / "mine.json", dataclasses.asdict(dataclasses.replace(A100, name="mine", source="measured"))
    path.write_text(json.dumps(values))
    assert machines.find(str(path)).source == "measured"
    for wrong, words in [
        ({"memory": "80"}, "memory must be a number"),
        ({"per_node": 0}, "per_node must be a whole number from 1"),
        ({"matrix": 0}, "matrix must be above 0"),
        ({"link": float("inf")}, "link must be a number"),
        ({"device": "tpu"}, "device must be cuda or cpu"),
    ]:
        path.write_text(json.dumps(values | wrong))
        with pytest.raises(UserError, match=words):
            machines.find(str(path))
    path.write_text("[1]")
    with pytest.raises(UserError, match="not a measured GPU"):
        machines.find(str(path))
