"""sam-ds recipes."""

from __future__ import annotations

import pytest

from sam_ds.cli.main import main
from sam_ds.config import deepspeed
from sam_ds.recipes import RECIPES


def test_the_list_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(len(line.split()) > 3 for line in lines)


def test_a_recipe_is_shown_with_its_sheet_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "sam_vit_h", "--set", "optim.lr=1e-3"]) == 0
    out = capsys.readouterr().out
    assert "optim.lr = 0.001" in out
    assert "schedule.milestones = 60000,86666" in out
    assert "tracking.mlflow = true" in out
    assert "not yet run at scale" in out


@pytest.mark.parametrize("name", RECIPES)
def test_a_data_sheet_gives_the_command_and_the_hardware(name: str) -> None:
    sheet = RECIPES[name].__doc__ or ""
    assert "Hardware:" in sheet
    assert f"--recipe {name}" in sheet or "make train" in sheet


@pytest.mark.parametrize(("name", "epochs"), [("sam_vit_l", 2.06), ("sam_vit_h", 2.06), ("meta_sam_large", 9.2)])
def test_the_lengths_are_what_the_sheets_say(name: str, epochs: float) -> None:
    sheet = RECIPES[name].__doc__ or ""
    batch = _batch(sheet)
    assert RECIPES[name]().train.steps * batch / 11_185_362 == pytest.approx(epochs, abs=0.05)
    assert f"{epochs} epochs" in sheet


@pytest.mark.parametrize("name", RECIPES)
def test_a_sheet_s_config_has_the_batch_that_the_recipe_is_made_for(name: str) -> None:
    sheet, meant = RECIPES[name].__doc__ or "", RECIPES[name]().train.made_for_batch
    assert meant == (_batch(sheet) if "ds_configs/" in sheet else 0)


def _batch(sheet: str) -> int:
    """Of the config that a data sheet names; a pre-training's has another option."""
    words = sheet.split()
    return int(deepspeed.load(words[words.index("--deepspeed_config") + 1]).raw["train_batch_size"])
