"""The report of benchmark results: charts, one page that needs no other file, and the newest of what was repeated."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", page) == []
    assert (
        set(re.findall(r"href=\"#([^\"]+)", page))
        == set(re.findall(r"id=\"([^\"]+)", page))
        == {"kernels", "other-tables"}
    )
    assert "<td>&lt;b&gt;</td>" in page


PLANS = """recipe,config,gpu,nodes,gpus,pictures_per_second,days,cost_dollars,memory_gib
sam_vit_h,zero2,A100-80,1,8,40.0,6.6,2500,61
sam_vit_h,zero2,A100-80,16,128,600.0,0.44,2700,58
"""
TRAIN_STEP = """recipe,choice,masks,prepare,encoder,rounds,backward,optimizer,pictures_per_second,peak_mb,machine
tiny,plain,4,1.0,20.0,30.0,50.0,2.0,9.7,nan,CPU
"""
MEMORY = """preset,stage,batch,masks,crop,checkpointing,predicted_mb,measured_mb,predicted_ms,measured_ms,fitted,machine
tiny,2,1,4,256,torch,100.0,104.0,50,55,,CPU
tiny,3,1,4,256,torch,90.0,70.0,50,55,yes,CPU
tiny,2,1,8,256,torch,,120.0,,,,CPU
"""
STEPS = """recipe,predicted_ms,measured_ms,machine
tiny,50,55,CPU
"""


def test_what_is_drawn_of_plans_and_predictions(tmp_path: Path) -> None:
    results, output = tmp_path / "results", tmp_path / "report"
    results.mkdir()
    tables = {"plans": PLANS, "train_step": TRAIN_STEP, "memory": MEMORY, "plan_step": STEPS}
    for name, text in tables.items():
        (results / f"{name}.csv").write_text(text)
    command = [sys.executable, ROOT / "benchmarks" / "report.py", "--results", results, "--output", output]
    subprocess.run(command, check=True)
    assert sorted(path.stem for path in output.glob("*.png")) == [
        "cost_on_A100-80_planned",
        "memory_of_tiny_CPU",
        "memory_predicted_and_measured_memory",
        "parts_of_a_training_step_of_tiny_CPU",
        "scaling_on_A100-80_planned",
        "throughput_of_a_training_step_CPU",
        "time_predicted_and_measured_memory",
        "time_predicted_and_measured_plan_step",
    ]


def test_shipped_results_can_be_drawn(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "benchmarks" / "report.py", "--output", tmp_path], check=True)
    assert (tmp_path / "kernels_predicted_A100.png").stat().st_size > 10_000


HANDOVER = """data,steps,settings,start,seed,step,minutes,miou@1,miou@8,mae_settings,pretrain_settings,machine
nuclei,200,,scratch,0,100,1,10.0,20.0,,,CPU
nuclei,200,,scratch,0,200,2,40.0,50.0,,,CPU
nuclei,200,,scratch,1,100,1,20.0,30.0,,,CPU
nuclei,200,,mae,0,100,1,30.0,40.0,optim.layer_decay=0.75,,CPU
"""


def test_the_handover_is_a_line_of_means_for_each_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import charts
    from tables import load

    (tmp_path / "handover.csv").write_text(HANDOVER)
    ((title, figure),) = charts.handover(load(str(tmp_path)))
    assert title == "SAM from MAE and from scratch, nuclei, 200 steps, CPU"
    (one_click, eight) = figure.axes
    assert [line.get_xydata().tolist() for line in one_click.lines] == [[[100, 15], [200, 40]], [[100, 30]]]
    assert [line.get_xydata().tolist() for line in eight.lines] == [[[100, 25], [200, 50]], [[100, 40]]]
    assert [line.get_label() for line in one_click.lines] == ["scratch", "mae optim.layer_decay=0.75"]
