"""What is needed to plant a hang, an error or a death in one rank of a stage, from outside of the project's code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from interruption import EVERY_STEP, own_copy, seconds_until
from running import TINY

TWO = {
    "ddp": "ppo.parallelism={strategy: ddp, processes: 2}",
    "fsdp": "ppo.parallelism={strategy: fsdp, processes: 2}",
}
# The reward of a run in which rank 1 does something once, in its third call: that of the second step. By then the
# other rank waits for it in a collective.
PLANTED = """
import os, signal, sys, time
from pathlib import Path

calls = 0


def score(prompts, responses):
    global calls
    calls += 1
    planted = Path(__file__).with_name("planted")
    if calls == 3 and os.environ.get("RANK") == "1" and planted.exists():
        what = planted.read_text()
        planted.unlink()
        if what == "hang":
            time.sleep(3600)
        if what.startswith("slow"):
            time.sleep(float(what.split()[1]))
        if what in ("freeze", "die"):
            time.sleep(2)  # so that its last sign is from here
        if what == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            import torch

            def backward(*arguments, **options):
                raise ValueError("planted in backward")

            torch.Tensor.backward = backward
    return [float(len(response) % 7) / 7 for response in responses]
"""
RAISES = "ValueError: planted in backward"


class Run:
    """PPO of two processes in a folder of its own, in the background, its output in files."""

    def __init__(self, reference: Path, folder: Path, strategy: str, *overrides: str, torchrun: bool = False) -> None:
        self.folder = folder
        self.stage = folder / "runs" / "tiny" / "ppo"
        if not (folder / "planted.py").exists():
            own_copy(reference, folder, ["sft"])
            (folder / "planted.py").write_text(PLANTED)
        settings = ["reward.use=planted:score", "ppo.steps=3", EVERY_STEP, TWO[strategy], *overrides]
        if torchrun:
            command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stages.ppo"]
            command += ["--recipe", str(TINY), "--run-dir", "runs/tiny"]
        else:
            command = ["-m", "launch.cli", "ppo", str(TINY)]
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        self.out, self.err = (folder / "out").open("w+"), (folder / "err").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-P", *command, *settings],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=self.out,
            stderr=self.err,
            start_new_session=True,
        )

    def said(self) -> str:
        """What it has written to people so far."""
        return (self.folder / "out").read_text() + (self.folder / "err").read_text()

    def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait for something; how long it took."""
        return seconds_until(condition, seconds, self.said)

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        self.until(lambda: self.process.poll() is not None, seconds)
        return int(self.process.returncode)

    def close(self) -> None:
        """End what is left of it."""
        for process in processes_in(self.folder):
            process.kill()
        self.process.wait()
        self.out.close()
        self.err.close()


def processes_in(folder: Path) -> list[psutil.Process]:
    """The processes that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def plant(folder: Path, what: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "planted").write_text(what)


def beacon(stage: Path, rank: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((stage / ".beacons" / f"rank-{rank:05d}.json").read_text())
    return content
