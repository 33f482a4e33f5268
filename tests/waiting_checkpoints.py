"""What is needed to have a stage's checkpoints wait, and to see which stand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interruption import kill_tree, lines_of, wait_for
from running import ROOT, TINY

ASIDE = "checkpoint.asynchronous=true"


@contextmanager
def held_up(run: Path, *overrides: str, processes: int = 1) -> Iterator[tuple[Path, subprocess.Popen[Any]]]:
    """PPO in the background, whose checkpoints wait for files in the folder that is given; killed at the end."""
    gate = run.parent / "gate"
    gate.mkdir()
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), str(ROOT / "tests" / "held_up.py"), str(gate)]
    command += ["--recipe", str(TINY), "--run-dir", str(run), *overrides]
    process = subprocess.Popen(command, cwd=run.parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield gate, process
    finally:
        if process.poll() is None:
            kill_tree(process)


def killed_in_flight(run: Path, *overrides: str, processes: int = 1) -> None:
    """The tiny recipe's three steps of PPO, killed while the last checkpoint is in flight; that of step 1 stands.

    It was written when all steps were made: it must hold the first, whatever has happened since.
    """
    checkpoints = run / "ppo" / "checkpoints"
    settings = ("checkpoint.every_steps=1", ASIDE, "checkpoint.keep_best=false", *overrides)  # nothing has to wait
    with held_up(run, *settings, processes=processes) as (gate, process):
        assert wait_for(lambda: lines_of(run / "ppo" / "metrics.jsonl") >= 6, process)  # 3 steps, 3 evaluations
        assert standing(checkpoints) == []
        assert wait_for(lambda: unfinished(checkpoints) == [1], process)
        (gate / "1").touch()
        assert wait_for(lambda: unfinished(checkpoints) == [3], process)
    assert standing(checkpoints) == [1] and unfinished(checkpoints) == [3]


def standing(folder: Path) -> list[int]:
    """The steps of the checkpoints that are complete, in order."""
    return sorted(int(path.name[5:]) for path in folder.glob("step-??????"))


def unfinished(folder: Path) -> list[int]:
    """The steps of the checkpoints that are being written."""
    return sorted(int(path.name[6:12]) for path in folder.glob(".step-*"))
