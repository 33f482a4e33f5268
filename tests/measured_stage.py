"""Stages that say what they hold in memory: `python measured_stage.py JOBS`.

JOBS: json lines, each of one stage: its name, whether tensors are counted or what is resident, how many processes,
where their figures go, and its command line. FILE-RANK.json gets the most bytes of each phase of training. Libraries
are loaded once; each process of a stage is a fork, which has loaded nothing else.
"""

# ruff: noqa: E402  # see the line before the first of these imports

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# peft would import it, and it asks CUDA at once: a fork of a process that has is refused all of CUDA.
sys.modules["bitsandbytes"] = None  # type: ignore[assignment]

import peft  # noqa: F401  # all that a stage may load, so that it does not count
import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import stages.ppo
import stages.reward
import stages.sft  # noqa: F401
from launch.local import Meeting, free_port, rank_environment
from rlhf.distributed import rank
from rlhf.engine.zero import ZeroEngine, load_deepspeed
from rlhf.generation.native import NativeGenerator
from rlhf.ppo import experience, update
from stages import command
from tests.allocated import LARGE, M_MMAP_THRESHOLD, Allocated


class Marks:
    """The most bytes that were held between marks."""

    def __init__(self) -> None:
        self.name, self.most = "loading", dict[str, int]()

    def mark(self, name: str) -> None:
        """What happens from now on, until the next mark."""
        if name != self.name:
            self._note()
            self.name = name

    def peaks(self) -> dict[str, int]:
        """The most bytes that were held at a time, by mark."""
        self._note()
        return self.most

    def _note(self) -> None:
        self.most[self.name] = max(self.most.get(self.name, 0), self._peak())

    def _peak(self) -> int:
        """The most bytes since this was last asked."""
        raise NotImplementedError


class Resident(Marks):
    """Of the pages of this process, less those that it had before."""

    def __init__(self) -> None:
        super().__init__()
        # What is freed goes back to the system, and is not kept for later.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
        self.before = field("VmRSS")

    def _peak(self) -> int:
        peak = field("VmHWM") - self.before
        Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
        return peak


class OnGpu(Marks):
    """Of what torch's allocator gave on this process's GPU."""

    def _peak(self) -> int:
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


METERS: dict[str, Callable[[], Any]] = {"tensors": Allocated, "resident": Resident, "gpu": OnGpu}


def field(name: str) -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def marked(owner: Any, name: str, phase: str, mark: Callable[[str], None]) -> None:
    """Have a function say that a phase begins."""
    inner = getattr(owner, name)

    def outer(*arguments: Any, **options: Any) -> Any:
        mark(phase)
        return inner(*arguments, **options)

    setattr(owner, name, outer)


def run(name: str, kind: str, file: str) -> None:
    """Run a stage, in a process that nothing else is asked of."""
    stage: Any = importlib.import_module(f"stages.{name}")
    meter = METERS[kind]()
    marked(NativeGenerator, "sample", "sampling", meter.mark)
    for asked in ("response_logprobs", "response_values"):
        marked(experience, asked, "log-probs", meter.mark)
    marked(update, "response_logprobs", "update", meter.mark)
    marked(transformers.Trainer, "training_step", "forward and backward", meter.mark)
    marked(transformers.Trainer, "evaluate", "evaluation", meter.mark)
    marked(ZeroEngine, "step", "optimizer", meter.mark)
    register_optimizer_step_pre_hook(lambda *_: meter.mark("optimizer"))
    register_optimizer_step_post_hook(lambda *_: meter.mark("between"))
    marked(stages.ppo, "whole_policy", "finishing", meter.mark)
    marked(command.StageContext, "finish", "finishing", meter.mark)

    def leave(code: int) -> None:
        if code == 0:
            Path(f"{file}-{rank()}.json").write_text(json.dumps(meter.peaks()))
        os._exit(code)

    command.leave = leave
    command.keep_freed = lambda: False  # meters want that what is freed goes
    command.run_stage(name, stage.main)


def start(name: str, kind: str, processes: int, file: str, arguments: list[str]) -> list[int]:
    """Fork the processes of a stage; their ids."""
    meeting, started = Meeting(port=free_port()), []
    for number in range(processes):
        if (child := os.fork()) == 0:
            os.environ.update(rank_environment(number, processes, meeting) if processes > 1 else {})
            sys.argv[1:] = arguments
            try:
                run(name, kind, file)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        started.append(child)
    return started


def main(jobs: Path) -> int:
    """Run all, one after the other; 1 where one has failed."""
    torch.set_num_threads(1)
    failed, lines = False, jobs.read_text().splitlines()
    if any("zero" in line for line in lines):
        load_deepspeed()
    for line in lines:
        codes = [os.waitpid(child, 0)[1] for child in start(*json.loads(line))]
        failed = failed or any(codes)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
