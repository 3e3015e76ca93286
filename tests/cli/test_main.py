"""The frame of the command line: --help is fast, and a mistake is one line and exit code 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import sam_ds
from sam_ds.cli.main import COMMANDS, build_parser, main
from tests.contracts.source import ROOT


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "example" in out
    assert f"sam-ds {command}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_lists_every_command(command: str) -> None:
    listed = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Commands")[2].partition("\n## ")[0]
    assert f"\nsam-ds {command} " in listed


def test_help_does_not_wait_for_torch() -> None:
    code = "from sam_ds.cli.main import build_parser; import sys; build_parser()\n"
    code += "print([name for name in ('torch', 'deepspeed', 'mlflow', 'numpy', 'PIL') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), ["'trian'", "did you mean train"]),
        (("--local_rank=1", "recipies"), ["did you mean recipes"]),
        (("--local_rank", "1", "recipies"), ["did you mean recipes"]),
        ((), ["command", "--help"]),
        (("recipes", "--sett", "a=b"), ["--sett", "--help"]),
        (("recipes", "tinny"), ["'tinny'", "did you mean tiny"]),
        (("recipes", "tiny", "--set", "optim.rl=1"), ["optim.rl", "optim.lr"]),
        (("recipes", "nowhere/recipe.json"), ["nowhere/recipe.json", "cannot read"]),
        (("export", "nowhere", "-o", "x.pth"), ["nowhere", "no such folder"]),
        (("export", "nowhere"), ["-o/--output"]),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("sam-ds")
    for word in words:
        assert word in err


def test_the_launcher_puts_local_rank_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--local_rank=1", "recipes")[:2] == run(capsys, "recipes")[:2]
    assert build_parser().parse_args(["--local_rank=1", "recipes"]).local_rank == 1


def test_one_rank_of_a_machine_reports(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert run(capsys, "trian") == (2, "", "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "8")
    assert "no command 'trian'" in run(capsys, "trian")[2]


def test_the_module_runs_as_the_launcher_starts_it() -> None:
    command = [sys.executable, "-m", "sam_ds", "--local_rank=0", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"sam-ds {sam_ds.__version__}"


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = [sys.executable, "-m", "sam_ds", "recipes", "sam_vit_h"]
    reads, writes = os.pipe()
    os.close(reads)
    result = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")
