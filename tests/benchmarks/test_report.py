"""The report of benchmark results: charts, one page that needs no other file, and the newest of what was repeated."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.contracts.source import ROOT

KERNELS = """op,shape,device,provider,mode,ms_50,machine
loss,64x3,cuda,ours,forward,4.0,GPU / CPU
loss,64x3,cuda,ours,forward,0.5,GPU / CPU
loss,64x3,cuda,theirs,forward,9.0,GPU / CPU
loss,64x3,cpu,ours,forward,777.0,CPU
"""


def test_report(tmp_path: Path) -> None:
    results, output = tmp_path / "results", tmp_path / "report"
    results.mkdir()
    (results / "kernels.csv").write_text(KERNELS)
    (results / "other.csv").write_text("name,value\n<b>,1\n")
    command = [sys.executable, ROOT / "benchmarks" / "report.py", "--results", results, "--output", output]
    subprocess.run(command, check=True)
    assert [path.name for path in output.glob("*.png")] == ["loss_64x3_GPU.png"]
    page = (output / "index.html").read_text()
    assert page.count("<img") == page.count("data:image/png;base64,") == 1
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert "<td>&lt;b&gt;</td>" in page


def test_shipped_results_can_be_drawn(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "benchmarks" / "report.py", "--output", tmp_path], check=True)
    assert (tmp_path / "kernels_predicted_A100.png").stat().st_size > 10_000
