"""A stage that says what it holds in memory: `python measured_stage.py KIND FILE stages.STAGE --recipe ...`.

KIND: tensors, the bytes of torch's allocator; or resident, those of the process. FILE-RANK.json gets the most of each
phase of training, less what stood before the first model was loaded.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  # all that a stage may load, so that it does not count
import peft  # noqa: F401
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import stages.trainer  # noqa: F401
from rlhf.distributed import rank
from rlhf.engine.zero import ZeroEngine, load_deepspeed
from rlhf.generation.native import NativeGenerator
from rlhf.ppo import experience, update
from stages import command
from tests.allocated import Allocated


class Resident:
    """Peaks between marks, of the pages of this process."""

    def __init__(self) -> None:
        self.before = field("VmRSS")
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
        self.most[self.name] = max(self.most.get(self.name, 0), field("VmHWM") - self.before)
        Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew


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


def main(kind: str, file: str, module: str) -> None:
    """Run a stage."""
    load_deepspeed()
    stage: Any = importlib.import_module(module)
    meter = Allocated() if kind == "tensors" else Resident()
    marked(NativeGenerator, "sample", "sampling", meter.mark)
    for name in ("response_logprobs", "response_values"):
        marked(experience, name, "log-probs", meter.mark)
    marked(update, "response_logprobs", "update", meter.mark)
    marked(transformers.Trainer, "training_step", "forward and backward", meter.mark)
    marked(transformers.Trainer, "evaluate", "evaluation", meter.mark)
    marked(ZeroEngine, "step", "optimizer", meter.mark)
    register_optimizer_step_pre_hook(lambda *_: meter.mark("optimizer"))
    register_optimizer_step_post_hook(lambda *_: meter.mark("between"))
    marked(command.StageContext, "finish", "finishing", meter.mark)
    marked(stage, "whole_policy", "finishing", meter.mark) if hasattr(stage, "whole_policy") else None

    def leave(code: int) -> None:
        number = rank()
        Path(f"{file}-{number}.json").write_text(json.dumps(meter.peaks()))
        ended(code)

    ended, command.leave = command.leave, leave
    command.run_stage(module.rpartition(".")[2], stage.main)


if __name__ == "__main__":
    kind, file, module = sys.argv[1:4]
    del sys.argv[1:4]
    main(kind, file, module)
