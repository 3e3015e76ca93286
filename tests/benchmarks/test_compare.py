"""What became worse between two sets of results: the same case on the same machine, and the way that is better."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.source import ROOT

HEAD = "op,shape,device,provider,mode,ms_50,tflops,machine,commit\n"
OLD = HEAD + "loss,64,cuda,ours,full,2.0,10,A100,a1\nloss,64,cuda,theirs,full,9.0,3,A100,a1\n"


def compare(tmp_path: Path, old: dict[str, str], new: dict[str, str], *more: str) -> tuple[int, str]:
    for name, tables in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        for table, text in tables.items():
            (tmp_path / name / f"{table}.csv").write_text(text)
    return report("--compare", str(tmp_path / "old"), str(tmp_path / "new"), *more)


def report(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_slower_is_worse_and_said(tmp_path: Path) -> None:
    slower = OLD + "loss,64,cuda,ours,full,3.0,7,A100,b2\n"
    code, said = compare(tmp_path, {"kernels": OLD}, {"kernels": slower})
    assert code == 1
    assert "WORSE  kernels.csv: ms_50 of loss, 64, cuda, ours, full: 2 to 3 (+50%) on A100" in said
    assert "2 rows and 2 figures compared: 1 worse and 0 better" in said


@pytest.mark.parametrize(
    "newer",
    [
        "loss,64,cuda,ours,full,2.1,10,A100,b2\n",  # within the threshold
        "loss,64,cuda,ours,full,1.0,10,A100,b2\n",  # better
        "loss,64,cuda,ours,full,9.0,10,H100,b2\n",  # another machine
        "loss,99,cuda,ours,full,9.0,10,A100,b2\n",  # another case
        "loss,64,cuda,ours,full,2.0,1,A100,b2\n",  # what follows from the time
        "loss,64,cuda,ours,full,9.0,1,A100,b2\nloss,64,cuda,ours,full,2.0,10,A100,b3\n",  # measured again
    ],
)
def test_no_regression(newer: str, tmp_path: Path) -> None:
    code, said = compare(tmp_path, {"kernels": OLD}, {"kernels": OLD + newer})
    assert code == 0, said


def test_the_threshold(tmp_path: Path) -> None:
    slower = OLD + "loss,64,cuda,ours,full,2.1,10,A100,b2\n"
    assert compare(tmp_path, {"kernels": OLD}, {"kernels": slower}, "--threshold", "0.01")[0] == 1


def test_more_can_be_better_and_something_is_more_than_nothing(tmp_path: Path) -> None:
    old = {
        "learning": "run,recipe,steps,model,miou@1,machine\na,tiny,500,trained,50,CPU\n",
        "reliability": "fault,figure,value,goal,met,machine\nkill,exact,100 %,100 %,True,CPU\n",
        "fuzz": "target,cases,failures,machine\nrle,10,0,CPU\n",
        "gone": "a\n1\n",
    }
    new = {
        "learning": old["learning"].replace(",50,", ",40,"),
        "reliability": old["reliability"].replace("100 %,100 %,True", "90 %,100 %,False"),
        "fuzz": old["fuzz"].replace("10,0", "10,1"),
    }
    code, said = compare(tmp_path, old, new)
    assert code == 1 and said.count("WORSE") == 3
    assert "miou@1 of a, tiny, 500, trained: 50 to 40 (+20%)" in said
    assert "met of kill, exact, 100 %: 1 to 0 (+100%)" in said
    assert "failures of rle: 0 to 1 (+inf%)" in said
    assert "gone.csv: only the old ones have it" in said


def test_a_row_that_is_gone_is_said(tmp_path: Path) -> None:
    code, said = compare(tmp_path, {"kernels": OLD}, {"kernels": "".join(OLD.splitlines(keepends=True)[:2])})
    assert code == 1
    assert "GONE   kernels.csv: loss, 64, cuda, theirs, full on A100" in said
    assert "1 rows and 1 figures compared: 0 worse and 0 better by more than 10%, 1 rows gone" in said


@pytest.mark.parametrize(
    ("was", "off", "worse"),
    [("0.02", "0.2", 1), ("0.02", "-0.2", 1), ("-0.2", "0.15", 0), ("-0.2", "-0.02", 0), ("0.01", "0.02", 0)],
)
def test_a_prediction_that_is_further_off_is_worse(was: str, off: str, worse: int, tmp_path: Path) -> None:
    old = f"shape,measured_mb,predicted_mb,off_mb,machine\nb,100,99,{was},CPU\n"
    code, said = compare(tmp_path, {"memory": old}, {"memory": old.replace(f",{was},", f",{off},")})
    assert (code, said.count(f"WORSE  memory.csv: off_mb of b: {was} to {off} (+18%)")) == (worse, worse)


def test_tables_without_a_common_row_say_so(tmp_path: Path) -> None:
    code, said = compare(tmp_path, {"kernels": OLD}, {"kernels": OLD.replace("A100", "H100")})
    assert code == 0 and "kernels.csv: no row is about the same thing on the same machine in both" in said


def test_revisions_and_what_is_none() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a git checkout")
    code, said = report("--compare", "HEAD", "HEAD")
    assert code == 0 and ": 0 worse and 0 better" in said and not said.startswith("0 rows")
    code, said = report("--compare", "HEAD", "no_such_thing")
    assert code == 2 and said.splitlines()[-1].endswith(
        "no_such_thing: neither a folder nor a git revision with benchmarks/results"
    )


def test_every_figure_of_the_shipped_tables_is_known(on_path: None) -> None:
    """A column that is neither known as a result nor says what was measured would keep rows from ever matching."""
    import tables

    for table, rows in tables.load(str(ROOT / "benchmarks" / "results")).items():
        assert table in tables.RESULTS_OF, f"tables.RESULTS_OF lacks {table}"
        repeated = {tables.key(table, row) for row in rows}
        # Of measurements that go on for digits no two are alike: they are no part of a case.
        for name, value in {pair for case in repeated for pair in case}:
            written = table in ("learning", "kernels_static") or name == "versions" or name.endswith("settings")
            assert "." not in value or written, (table, name)
