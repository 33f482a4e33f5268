"""Models whose weights are shared out over processes, block by block: torch's FSDP2.

Every forward of such a model is a collective: all ranks must make as many (`rlhf.lockstep`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rlhf.distributed import device
from rlhf.heads import scoring_parts
from rlhf.trunk import PolicyWithValueHead


@dataclass(frozen=True)
class Sharding:
    """Over which processes weights are shared out, and where they wait."""

    mesh: DeviceMesh  # [shards], or [copies, shards]: each copy shared out over some of the processes
    offload: bool = False  # weights, gradients and optimizer wait in the CPU's memory

    def shard(self, module: nn.Module, bfloat16: bool = False) -> nn.Module:
        """Share a model's weights out, in place; it may still be on the CPU, each block is moved as it is cut.

        bfloat16: weights are sent, and compute, in bfloat16; those that learn stay in float32, as do gradients' sums.
        """
        if isinstance(module, PolicyWithValueHead):  # the policy samples without its head, so each is a root
            self.shard(module.policy, bfloat16)
            self._cut(module.head, MixedPrecisionPolicy())
            return module
        policy = MixedPrecisionPolicy()
        if bfloat16:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for block in blocks(module):
            self._cut(block, policy)
        return self._cut(module, policy)

    def shard_scorer(self, model: nn.Module) -> nn.Module:
        """Share a frozen reward model out, in place: `rlhf.heads.sequence_scores` calls it part by part."""
        for block in blocks(model):
            self._cut(block, MixedPrecisionPolicy())
        for part in scoring_parts(model):
            self._cut(part, MixedPrecisionPolicy())
        return model

    def _cut(self, module: nn.Module, precision: MixedPrecisionPolicy) -> nn.Module:
        offload = CPUOffloadPolicy(pin_memory=device().type == "cuda") if self.offload else OffloadPolicy()
        # The root too, whose weights FSDP would keep whole behind a forward: they would miss what shards are given.
        cut = fully_shard(
            module, mesh=self.mesh, reshard_after_forward=True, mp_policy=precision, offload_policy=offload
        )
        # Sums, where FSDP would average: losses are divided by counts over all ranks. Each block has a setting of its
        # own; a factor alone is a kind of reduction that gloo does not have.
        cut.set_gradient_divide_factor(1.0)
        cut.set_force_sum_reduction_for_comms(True)
        return module


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that a model repeats, by transformers' own account of what must not be split."""
    names = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    yield from (part for part in module.modules() if type(part).__name__ in names)


def shards(module: nn.Module) -> list[FSDPModule]:
    """The parts of a model that are shared out, each with its own collectives; none of a whole model."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def is_sharded(module: nn.Module) -> bool:
    """Whether a model's forward is a collective."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def device_of(module: nn.Module) -> torch.device:
    """Where a model computes; its weights may wait elsewhere."""
    return device() if is_sharded(module) else next(module.parameters()).device


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its parts, on every rank; a collective where it is shared out."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """All weights on every rank for a while: forwards are no collectives until it ends. Entering is one."""
    parts: list[Any] = shards(module)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)
