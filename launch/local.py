"""Start a stage on this machine: one process, or several under torchrun, in a process group of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rlhf.config import Recipe


def visible_gpus() -> int:
    """GPUs that a child process would see, asked without loading torch."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return len([gpu for gpu in listed.split(",") if gpu.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in found.stdout.splitlines())


def processes_of(recipe: Recipe, stage: str) -> int:
    """How many processes a stage gets here: as many as it says, or as many GPUs as its batch splits over."""
    parallelism = recipe.parallelism_of(stage)
    if parallelism.processes != "auto":
        return parallelism.processes
    batch = {"sft": recipe.sft.batch_size, "reward": recipe.reward.batch_size}.get(stage)
    processes = max(1, visible_gpus())
    while batch and batch % processes:
        processes -= 1
    return processes


def stage_command(stage: str, recipe: Path, run: Path, processes: int) -> list[str]:
    """The command line of a stage."""
    module = ["-m", f"stages.{stage}", "--recipe", str(recipe), "--run-dir", str(run)]
    if processes == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *torchrun, *module]


def stage_environment(processes: int) -> dict[str, str]:
    """The environment of a stage: the machine's cores shared out, and no module picked up from the working folder."""
    environment = dict(os.environ)
    # `data` and `launch` are common names: a folder of that name in the working directory must not win.
    environment["PYTHONSAFEPATH"] = "1"
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    # With a shared store an elastic restart meets the addresses of the processes before it (pytorch#135712).
    environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    return environment


def execute(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command in its own process group and return its exit code; signals to us end the whole group."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        signal_group(process, signal.SIGKILL if received else number)  # who asks twice means it
        received.append(number)

    forwarded = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, forward) for number in forwarded}
    try:
        while True:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                continue
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal_group(process, signal.SIGKILL)  # whatever the stage left behind in its group


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process group that may be gone already."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
