"""The engine on two real gloo ranks: gradients, skipped steps, phases, checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sam_ds.engine.precision import cpu_multiplies
from tests.engine import cases, ranks

FP16 = cpu_multiplies("fp16")  # DeepSpeed refuses it on a processor without it, and the ranks are then of no more use
STAGES = (0, 1, 2, 3)
MODES = {
    "none": ("none", False),
    "torch": ("torch", False),
    "fairscale": ("fairscale", False),
    "offload": ("fairscale", True),
}
PARITY = {
    f"parity_{stage}_{accumulation}_{mode}": partial(
        cases.parity, stage=stage, accumulation=accumulation, mode=MODES[mode][0], offload=MODES[mode][1]
    )
    for stage in STAGES
    for accumulation in (1, 4)
    for mode in MODES
}
PRECISION = {
    f"parity_{stage}_{precision}": partial(
        cases.parity, stage=stage, accumulation=2, mode="torch", offload=False, precision=precision
    )
    for stage in STAGES
    for precision in ("bf16", "fp16")
}
NOT_FINITE = {
    f"not_finite_{stage}_{precision}_{kind}": partial(cases.not_finite, stage=stage, precision=precision, kind=kind)
    for stage in STAGES
    for precision in ("fp32", "bf16", "fp16")
    for kind in ("loss", "gradient")
}
RESUME = {
    f"resume_{stage}_{precision}_{frozen}_{half}": partial(
        cases.resume, stage=stage, precision=precision, frozen=frozen, half=half
    )
    for stage, precision, frozen, half in (
        (0, "fp32", 0, 10),
        (2, "fp32", 0, 10),
        (3, "fp32", 0, 10),
        (2, "bf16", 0, 10),
        (3, "bf16", 0, 10),
        (2, "fp16", 0, 10),
        (2, "bf16", 6, 4),
        (2, "bf16", 6, 6),
        (3, "bf16", 6, 4),
        (3, "bf16", 6, 8),
    )
}
FROZEN = {
    f"frozen_{stage}_{precision}": partial(cases.frozen_phase, stage=stage, precision=precision)
    for stage in STAGES
    for precision in ("fp32", "bf16")
}
CURVES = {f"curve_{stage}": partial(cases.curve, stage=stage, accumulation=1) for stage in STAGES}
CURVES |= {
    f"curve_{stage}_bf16": partial(cases.curve, stage=stage, accumulation=1, precision="bf16") for stage in STAGES
}
AVERAGED = {
    f"averaged_{stage}_{precision}": partial(cases.averaged, stage=stage, precision=precision)
    for stage in STAGES
    for precision in ("fp32", "bf16", "fp16")
}
DRIFTED = {f"drifted_{stage}": partial(cases.drifted, stage=stage) for stage in (0, 1, 2)}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    everything = (
        PARITY
        | PRECISION
        | NOT_FINITE
        | RESUME
        | FROZEN
        | CURVES
        | AVERAGED
        | DRIFTED
        | {"refuse": cases.refuse, "full_disk": cases.full_disk}
    )
    possible = {name: case for name, case in everything.items() if FP16 or "fp16" not in name}
    return ranks.run(possible, 2, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    alone = {f"curve_{stage}": partial(cases.curve, stage=stage, accumulation=2) for stage in (0, 2)}
    return ranks.run(alone, 1, tmp_path_factory.mktemp("rank"))


def names(of: Iterable[str]) -> list[Any]:
    """As parameters of a test, those skipped that cannot be run here."""
    no_fp16 = pytest.mark.skipif(not FP16, reason="DeepSpeed refuses fp16 on this processor")
    return [pytest.param(name, marks=no_fp16) if "fp16" in name else name for name in of]


@pytest.mark.parametrize("name", names([*PARITY, *PRECISION]))
def test_gradients_equal_plain_autograd(two_ranks: dict[str, list[Any]], name: str) -> None:
    for report in ranks.value(two_ranks, name):
        assert report["passed"], report


@pytest.mark.parametrize("name", names(NOT_FINITE))
def test_a_bad_rank_skips_the_step_on_all(two_ranks: dict[str, list[Any]], name: str) -> None:
    for seen in ranks.value(two_ranks, name):
        assert all(seen.values()), seen


@pytest.mark.parametrize("name", names(RESUME))
def test_resume_is_exact_to_the_last_bit(two_ranks: dict[str, list[Any]], name: str) -> None:
    seen = ranks.value(two_ranks, name)
    for rank in seen:
        assert rank["weights"] and rank["optimizer"] and rank["mean"] and rank["loaded"] and rank["logs"], rank
    frozen, half = (int(word) for word in name.split("_")[-2:])
    assert seen[0]["manifest"] == [half, half <= frozen and frozen > 0, 0.5, 7]
    assert seen[0]["digest"] == seen[1]["digest"]


@pytest.mark.parametrize("name", names(AVERAGED))
def test_the_mean_of_the_weights_is_torchs_to_the_last_bit(two_ranks: dict[str, list[Any]], name: str) -> None:
    """Through a frozen start and a skipped step; it is what is evaluated, and the weights themselves stay."""
    for seen in ranks.value(two_ranks, name):
        assert seen["skipped"] == [False, False, True, False, False, False]
        assert seen["differ"] == [] and seen["own"] == []
        assert seen["weights_kept"] and seen["evaluated"]


@pytest.mark.parametrize("name", DRIFTED)
def test_own_digests_tell_ranks_apart(two_ranks: dict[str, list[Any]], name: str) -> None:
    """Else nothing above says that ranks end with equal weights. Shards of ZeRO-3 cannot differ: no rank has two."""
    first, second = ranks.value(two_ranks, name)
    assert first[0] == second[0] and first[1] != second[1]


@pytest.mark.parametrize("name", DRIFTED)
def test_a_rank_that_differs_is_told(two_ranks: dict[str, list[Any]], name: str) -> None:
    for seen in ranks.value(two_ranks, name):
        assert "in step 1, some ranks (no majority) and the others differ in model.image_encoder.pos_embed" in seen[2]


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_encoder_stays_and_then_moves(two_ranks: dict[str, list[Any]], name: str) -> None:
    for seen in ranks.value(two_ranks, name):
        assert all(seen.values()), seen


def test_stages_train_alike(two_ranks: dict[str, list[Any]]) -> None:
    curves = [ranks.value(two_ranks, f"curve_{stage}")[0] for stage in STAGES]
    for curve in curves[1:]:
        for part in ("losses", "norms"):
            assert curve[part] == pytest.approx(curves[0][part], rel=1e-4)
        assert curve["names"] == curves[0]["names"]
        assert curve["sums"] == pytest.approx(curves[0]["sums"], rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_16_bits_leave_buffers_and_names_alone(two_ranks: dict[str, list[Any]], stage: int) -> None:
    half, full = (ranks.value(two_ranks, f"curve_{stage}{suffix}")[0] for suffix in ("_bf16", ""))
    assert half["buffer"] == "torch.float32"
    assert half["names"] == full["names"]
    assert half["losses"] == pytest.approx(full["losses"], rel=0.02)


@pytest.mark.parametrize("stage", [0, 2])
def test_two_ranks_train_like_one(one_rank: dict[str, list[Any]], two_ranks: dict[str, list[Any]], stage: int) -> None:
    """The same global batches, dropped paths and normaliser; sums in another order."""
    one, two = (ranks.value(results, f"curve_{stage}")[0] for results in (one_rank, two_ranks))
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-5)
    assert one["norms"] == pytest.approx(two["norms"], rel=1e-4)
    assert one["sums"] == pytest.approx(two["sums"], rel=1e-4)


# World, ZeRO stage and precision of each leg of a training; fp32 to begin with, so that what follows can be compared.
LEGS = [(2, 2, "fp32"), (1, 2, "fp32"), (2, 3, "fp32"), (1, 0, "fp32"), (2, 3, "bf16")]
LEGS += [(1, 0, "fp16")] if FP16 else []


def test_any_world_goes_on_from_any_other(tmp_path: Path) -> None:
    """2 → 1 → 2 ranks, ZeRO-2 → 3 → 0, fp32 → 16 bits: weights to the bit, and the losses of an uninterrupted run."""
    straight = ranks.run(
        {"all": partial(cases.leg, root=tmp_path / "straight", stage=2, precision="fp32", start=0, end=3 * len(LEGS))},
        2,
        tmp_path,
    )
    expected = ranks.value(straight, "all")[0]
    end = ""
    for number, (world, stage, precision) in enumerate(LEGS):
        start = 3 * number
        case = partial(cases.leg, root=tmp_path / "relay", stage=stage, precision=precision, start=start, end=start + 3)
        found = ranks.value(ranks.run({"leg": case}, world, tmp_path), "leg")
        assert {rank["loaded"][1] for rank in found} == {start}
        if start:
            assert {rank["loaded"][0] for rank in found} == {end}, "the weights that were saved"
        rough = 1e-5 if precision == "fp32" else 3e-2
        assert found[0]["losses"] == pytest.approx(expected["losses"][start : start + 3], rel=rough)
        end = found[0]["end"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("seed", "of another run: seed is 3 there and 4 here"),
        ("model", "of another model: model.mask_decoder.lin2.bias"),
        ("batch", "global batch of 2 pictures, not 6"),
        ("truncated", "moments_00001.safetensors has 100 of"),
        ("flipped", "moments_00001.safetensors is not what was written"),
        ("zeroed", "weights.safetensors is not what was written"),
        ("deleted", "random_00000.pt cannot be read (No such file"),
        ("manifest", "complete.json is damaged"),
        ("empty", "complete.json is damaged"),
        ("missing", "not a complete checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_clear_line(
    two_ranks: dict[str, list[Any]], name: str, words: str
) -> None:
    for messages in ranks.value(two_ranks, "refuse"):
        assert words in messages[name] and "\n" not in messages[name]


def test_a_full_disk_on_one_rank_costs_that_checkpoint_only(two_ranks: dict[str, list[Any]]) -> None:
    for seen in ranks.value(two_ranks, "full_disk"):
        assert seen["said"] == [f"rank {rank}: [Errno 28] No space left on device" for rank in (1, 0)]
        assert seen["left"] == ["step_00000000", "step_00000001"]
