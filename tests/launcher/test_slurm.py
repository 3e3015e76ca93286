"""The Slurm example, with programs that stand for Slurm's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "hostfiles" / "slurm_train.sh"
FAKES = {
    "srun": """trap "exit 0" USR1
printf "%s " "$@" > "$LOG/srun"
for _ in $(seq $TENTHS); do sleep 0.1; done
exit $STATUS""",
    "scancel": 'pkill -USR1 -P "$(cat $LOG/pid)" -f bin/srun',
    "scontrol": 'if [ "$1" = show ]; then printf "node-1\\nnode-2\\n"; else echo "$@" > "$LOG/scontrol"; fi',
}


@pytest.mark.parametrize(
    ("status", "asked", "requeued"), [(0, False, False), (0, True, True), (2, False, False), (75, False, True)]
)
def test_it_is_put_in_the_queue_again_unless_it_ended(status: int, asked: bool, requeued: bool, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in FAKES.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "LOG": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "STATUS": str(status),
        "TENTHS": "300" if asked else "1",
    }
    job = subprocess.Popen(["bash", str(SCRIPT), "--recipe", "sam_vit_h"], env=environment)
    (tmp_path / "pid").write_text(str(job.pid))
    if asked:
        until = time.monotonic() + 30
        while not (tmp_path / "srun").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == status
    assert (tmp_path / "srun").read_text().rstrip().endswith("-- --recipe sam_vit_h")
    assert (tmp_path / "scontrol").exists() == requeued
