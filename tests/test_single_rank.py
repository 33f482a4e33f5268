"""torchrun with one process, which libraries would take for one of several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from interruption import assert_same, own_copy
from running import TINY


def test_one_process_of_torchrun_trains_as_one_without(tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, [])
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command = [*agent, "-m", "stages.sft", "--recipe", str(TINY), "--run-dir", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(run / "sft", tiny_run / "sft")
