"""How models compute, as far as memory goes by it, and what of a device's memory tensors can fill. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30
FLOAT32, BFLOAT16 = 4, 2
LIBRARIES = int(0.75 * GIB)  # the CUDA context, workspaces of matrix products
FRAGMENTS = 0.1  # share of the memory that the allocator cannot give

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Computation:
    """How the models of a run learn and compute."""

    bfloat16: bool  # by autocast; weights that learn stay in float32
    checkpointing: bool  # activations of one block at a time, the others computed again
    packed: bool = False  # no padding, and logits in chunks: see `rlhf.packing` and `rlhf.token_head`
    lora_rank: int | None = None  # None: every weight learns
    quantization: Literal["nf4", "int8"] | None = None  # of the weights below the adapters
    processes: int = 1
    strategy: Strategy = "ddp"
    over: int = 1  # processes that share out what the strategy shares out
    bucket: int = 50_000_000  # entries of the buffer in which DeepSpeed sends gradients
    offloaded: Literal["moments", "all"] | None = None  # wait in the CPU's memory; all: weights too

    @property
    def whole(self) -> bool:
        """Whether each process has all weights, from beginning to end."""
        return self.strategy not in ("fsdp", "zero3") or (self.over == 1 and self.offloaded != "all")

    @property
    def weights_over(self) -> int:
        """Processes that share out the weights, block by block; frozen models' as well."""
        return self.over if self.strategy in ("fsdp", "zero3") else 1

    @property
    def gradients_over(self) -> int:
        """Processes that share out the gradients, once they are summed."""
        return self.over if self.strategy in ("fsdp", "zero3", "zero2") else 1

    @property
    def moments_over(self) -> int:
        """Processes that share out the optimizer's state."""
        return self.over if self.strategy != "ddp" else 1

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed's engine trains."""
        return self.strategy.startswith("zero")

    @property
    def element(self) -> int:
        """Bytes of a number that is computed with."""
        return BFLOAT16 if self.bfloat16 else FLOAT32


def usable(memory: float) -> float:
    """What of a device's memory (bytes) tensors can fill."""
    return memory * (1 - FRAGMENTS) - LIBRARIES
