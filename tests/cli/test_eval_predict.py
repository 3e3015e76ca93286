"""``sam-ds eval`` and ``sam-ds predict`` on a model with fresh weights, and what they say to mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sam_ds import recipes
from sam_ds.cli.eval import default_output
from sam_ds.cli.loading import build_model
from sam_ds.cli.main import main
from sam_ds.config import recipe_file
from sam_ds.data.synthetic import SyntheticConfig, synthesize
from sam_ds.evaluation.pictures import draw_curves
from sam_ds.evaluation.predict import Prompt, predict
from sam_ds.modeling.convert import read_weights, save_weights
from sam_ds.modeling.presets import build_sam
from sam_ds.types import Prediction
from tests.storage.cases import complete


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one checkpoint of an untrained tiny model."""
    recipe = recipes.get("tiny")
    recipe = replace(recipe, data=replace(recipe.data, workers=0))
    checkpoint = tmp_path_factory.mktemp("run") / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    torch.manual_seed(0)
    save_weights(build_sam(recipe.model).state_dict(), checkpoint / "weights.safetensors")
    complete(checkpoint, 10, recipe_file.to_dict(recipe))
    return checkpoint.parents[1]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)).save(path)
    return path


def test_an_untrained_model_is_what_its_training_starts_from(run_dir: Path) -> None:
    recipe = recipes.get("tiny")
    model = build_model(replace(recipe, model=replace(recipe.model, init=str(run_dir))))
    weights = read_weights(run_dir / "checkpoints" / "step_00000010" / "weights.safetensors")
    torch.testing.assert_close(dict(model.state_dict()), weights, rtol=0, atol=0)


def test_eval_prints_a_table_and_writes_numbers_and_pictures(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesize(tmp_path / "data", SyntheticConfig(2, 2, 0, (64, 96), (3, 5), False))
    settings = ["--set", "eval.clicks=1,2", "--set", "eval.max_masks=2", "--set", "eval.pictures=1"]
    code = main(["eval", str(run_dir), "--data", str(tmp_path / "data"), "--untrained", "--device", "cpu", *settings])
    said = capsys.readouterr().out
    assert code == 0
    assert said.splitlines()[0].split() == ["untrained", "disc", "disc,", "nearest", "model"]
    assert "mIoU after 2 clicks" in said and "mIoU after a box" in said
    output = run_dir / "evaluation" / "step_00000010"
    results = json.loads((output / "eval.json").read_text())
    assert results["metrics"]["model"]["masks"] == 4
    assert results["metrics"]["untrained"] == results["metrics"]["model"]  # the fixture's weights have the same seed
    assert len(list((output / "pictures").glob("*.png"))) == 1


def test_eval_measures_the_pictures_it_is_given(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesize(tmp_path / "data", SyntheticConfig(3, 2, 0, (64, 96), (3, 5), False))
    arguments = ["eval", str(run_dir), "--data", str(tmp_path / "data" / "val"), "--val", str(tmp_path / "data/train")]
    settings = ["--set", "eval.clicks=1", "--set", "eval.max_masks=2", "--set", "eval.pictures=0"]
    output = tmp_path / "results"
    assert main([*arguments, "--output", str(output), "--device", "cpu", *settings]) == 0
    assert "measured on 6 masks of 3 pictures" in capsys.readouterr().out
    results = json.loads((output / "eval.json").read_text())
    assert results["pictures"] == 3 and results["val"] == str(tmp_path / "data/train")
    assert main([*arguments, "--output", str(output / "eval.json"), "--device", "cpu", *settings]) == 2
    said = capsys.readouterr().err
    assert "eval.json cannot be written" in said and len(said.splitlines()) == 1


def test_eval_on_real_pictures(run_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path), "--device", "cpu", "--set", "eval.max_pictures=2"]
    arguments += ["--set", "eval.max_masks=3", "--set", "eval.clicks=1"]
    assert main(["eval", str(run_dir), "--data", str(data_dir / "nuclei"), *arguments]) == 0
    disc = json.loads((tmp_path / "eval.json").read_text())["metrics"]["disc"]
    assert disc["masks"] == 6 and disc["miou@box"] > 0.3  # an ellipse in the box suits nuclei


def test_default_output_lies_beside_the_weights() -> None:
    assert default_output(Path("runs/a/checkpoints/step_00000010/weights.safetensors")) == Path(
        "runs/a/evaluation/step_00000010"
    )
    assert default_output(Path("some/sam_vit_b.pth")) == Path("some/evaluation/sam_vit_b")


@pytest.mark.parametrize(
    "prompt", [["--point", "40,30"], ["--point", "40,30", "--point", "5.5,8,0", "--box", "3,4,70,50"]]
)
def test_predict_draws_the_mask(
    run_dir: Path, picture: Path, tmp_path: Path, prompt: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, mask = tmp_path / "new" / "out.png", tmp_path / "mask.png"
    weights = run_dir / "checkpoints" / "step_00000010" / "weights.safetensors"
    for checkpoint in ([str(run_dir)], [str(weights), "--preset", "tiny"]):
        arguments = ["predict", str(picture), "--checkpoint", *checkpoint, *prompt]
        assert main([*arguments, "-o", str(out), "--mask", str(mask), "--device", "cpu"]) == 0
    assert "predicted IoU" in capsys.readouterr().out
    with Image.open(out) as drawn:
        assert drawn.size == (90 * 5, 60 * 5)  # small pictures are enlarged
    with Image.open(mask) as found:
        assert found.size == (90, 60) and found.mode == "L"
        assert set(np.unique(np.asarray(found))) <= {0, 255}


MISTAKES = {
    "outside": (["--point", "90,5"], "point 90,5 lies outside the picture of 90 x 60 pixels"),
    "corner outside": (["--box", "5,5,40,60"], "box corner 40,60 lies outside"),
    "no prompt": ([], "give at least one --point x,y or a --box"),
    "no point": (["--point", "7"], "--point 7: write it as x,y"),
    "no number": (["--point", "a,b"], "--point a,b: write it as x,y"),
    "label": (["--point", "5,5,2"], "the label is 1 (this) or 0 (not this)"),
    "empty box": (["--box", "9,9,4,20"], "the box 9,9,4,20 is empty"),
    "short box": (["--box", "9,9,4"], "write it as x0,y0,x1,y1"),
    "device": (["--point", "5,5", "--device", "abacus"], "--device abacus"),
    "suffix": (["--point", "5,5", "-o", "out.xyz"], "cannot write out.xyz"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_predict_answers_a_mistake_with_one_line(
    run_dir: Path, picture: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt, expected = MISTAKES[name]
    arguments = ["predict", str(picture), "--checkpoint", str(run_dir), "-o", "out.png", "--device", "cpu", *prompt]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("checkpoint", "options", "expected"),
    [
        ("missing", [], "there is nothing at"),
        ("weights", [], "say which model they are with --recipe NAME or --preset"),
        ("weights", ["--preset", "vit_b", "--set", "model.preset=huge"], "model.preset"),
        ("cut", ["--preset", "tiny"], "is not a readable .safetensors file"),
        ("empty folder", [], "no complete checkpoint"),
        ("text.png", [], "is not a picture that can be read"),
        ("no.png", [], "there is no picture"),
    ],
)
def test_files_that_do_not_fit(
    run_dir: Path,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    checkpoint: str,
    options: list[str],
    expected: str,
) -> None:
    weights = run_dir / "checkpoints" / "step_00000010" / "weights.safetensors"
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    places = {"weights": weights, "cut": tmp_path / "cut.safetensors", "empty folder": tmp_path / "empty"}
    shown = tmp_path / checkpoint if checkpoint.endswith(".png") else picture
    source = places.get(checkpoint, run_dir if checkpoint.endswith(".png") else tmp_path / "missing")
    arguments = ["predict", str(shown), "--checkpoint", str(source), "--point", "5,5", "-o", str(tmp_path / "out.png")]
    assert main([*arguments, "--device", "cpu", *options]) == 2
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1


class Recorder(torch.nn.Module):
    """A model that answers with what is left of x = 20 in the input, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.config = replace(build_sam(recipes.get("tiny").model).config, image_size=256)
        self.logits_stride = self.config.patch_size // 4

    def normalize(self, images: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        self.valid = valid.tolist()
        return images.float()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 1, self.config.grid_size, self.config.grid_size)

    def decode(self, embeddings: torch.Tensor, picture: object, prompts: object, multimask: bool) -> Prediction:
        self.prompts, self.multimask = prompts, multimask
        side = 4 * self.config.grid_size
        line = 20 - (torch.arange(side) + 0.5) * self.logits_stride
        masks = line.expand(1, 3 if multimask else 1, side, -1)
        return Prediction(masks, torch.ones(masks.shape[:2]))


def test_predict_takes_and_gives_source_pixels() -> None:
    model = Recorder()
    pixels = np.zeros((64, 128, 3), np.uint8)  # the input shows it twice as large
    answer = predict(model, pixels, Prompt([(10, 20)], [1]), "cpu")  # type: ignore[arg-type]
    assert model.multimask and model.valid == [[128, 256]]
    assert model.prompts.points[0, 0].tolist() == [20.5, 40.5]
    assert answer.mask.shape == (64, 128)
    assert answer.mask.any(0).nonzero().flatten().tolist() == list(range(10))  # 20 input pixels are 10
    predict(model, pixels, Prompt([(10, 20)], [1], (1, 2, 30, 40)), "cpu")  # type: ignore[arg-type]
    assert not model.multimask
    assert model.prompts.labels[0].tolist() == [1, 2, 3]


def test_curves_are_drawn_from_what_there_is(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.0, "lr": 0.1}, {"step": 2, "loss": 1.0, "eval/miou@1": 0.5}]
    draw_curves(rows, tmp_path / "pictures" / "curves.png")
    with Image.open(tmp_path / "pictures" / "curves.png") as drawn:
        assert drawn.size == (1500, 400)  # three panels: what is not there is not drawn
