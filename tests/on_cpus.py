"""One process of a stage whose trainer shares its model out by DeepSpeed on CPUs: `python tests/on_cpus.py stages.sft`.

Without this accelerate counts one process, or runs DDP, whatever it is told. For tests alone: it is told how many there
are, that it need not keep to the CPU, and our own refusal passes.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import torch.distributed as dist
from accelerate.state import PartialState

import stages.trainer


def count_processes() -> None:
    """Have accelerate learn the number of processes from torch."""
    original = PartialState.__init__

    def counting(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        if dist.is_initialized():
            self.num_processes, self.process_index = dist.get_world_size(), dist.get_rank()

    PartialState.__init__ = counting


def let_pass() -> None:
    """Have the stage ask for what it would ask for on GPUs; there is no memory to pin."""
    original = stages.trainer.to_training_arguments

    def as_on_gpus(*arguments: Any, **options: Any) -> dict[str, Any]:
        return original(*arguments, **{**options, "cpu": False}) | {"dataloader_pin_memory": False}

    stages.trainer.to_training_arguments = as_on_gpus


def pass_over() -> None:
    """Have the stage ask for what it would ask for on GPUs, and its trainer never hear of DeepSpeed."""
    original = stages.trainer.to_training_arguments

    def unheard(*arguments: Any, **options: Any) -> dict[str, Any]:
        told = original(*arguments, **{**options, "cpu": False})
        return {**told, "deepspeed": None, "use_cpu": True, "ddp_backend": "gloo", "dataloader_pin_memory": False}

    stages.trainer.to_training_arguments = unheard


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "--unheard":
        sys.argv = sys.argv[1:]
        pass_over()
    else:
        count_processes()
        let_pass()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
