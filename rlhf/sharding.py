"""Models whose weights are shared out over processes, block by block: torch's FSDP2, or DeepSpeed's ZeRO-3.

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
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from rlhf.distributed import device
from rlhf.heads import scoring_parts
from rlhf.partitions import gather, gathered_partitions, is_partitioned, own_partition, without_hooks
from rlhf.trunk import PolicyWithValueHead


@dataclass(frozen=True)
class Sharding:
    """Over which processes weights are shared out, and where they wait."""

    mesh: DeviceMesh  # [shards], or [copies, shards]: each copy shared out over some of the processes
    offload: bool = False  # weights, gradients and optimizer wait in the CPU's memory

    def shard(self, module: nn.Module) -> nn.Module:
        """Share a model that learns out, in place; it may still be on the CPU, each block is moved as it is cut.

        Weights stay as they are, and compute by autocast like those of a whole model.
        """
        for block in blocks(module):
            self._cut(block)
        if isinstance(module, PolicyWithValueHead):  # the policy samples without its head, so each is a root
            self._cut(module.policy)
            self._cut(module.head)
            return module
        return self._cut(module)

    def shard_frozen(self, module: nn.Module, scores: bool = False) -> nn.Module:
        """Share a model that only answers out, in place.

        scores: it is a reward model, which `rlhf.heads.sequence_scores` calls part by part.
        """
        for block in blocks(module):
            self._cut(block)
        for part in scoring_parts(module) if scores else [module]:
            # FSDP notes the order of forwards for a backward; where none comes, the notes would grow for ever.
            self._cut(part).register_forward_hook(lambda root, *_: forget_order(root))
        return module

    def _cut(self, module: nn.Module) -> nn.Module:
        offload = CPUOffloadPolicy(pin_memory=device().type == "cuda") if self.offload else OffloadPolicy()
        # The root too, whose weights FSDP would keep whole behind a forward: they would miss what shards are given.
        cut = fully_shard(module, mesh=self.mesh, reshard_after_forward=True, offload_policy=offload)
        # Sums, where FSDP would average: losses are divided by counts over all ranks. Each block has a setting of its
        # own; a factor alone is a kind of reduction that gloo does not have.
        cut.set_gradient_divide_factor(1.0)
        cut.set_force_sum_reduction_for_comms(True)
        return module


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that a model repeats, inner ones first, by transformers' own account of what must not be split."""
    names = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    yield from (part for part in reversed(list(module.modules())) if type(part).__name__ in names)


def shards(module: nn.Module) -> list[FSDPModule]:
    """The parts of a model that are shared out, each with its own collectives; none of a whole model."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def forget_order(root: Any) -> None:
    """Forget what FSDP has noted of a forward that no backward follows; root: what was forwarded."""
    if hasattr(root, "reset_iter_state"):
        root.reset_iter_state()
        return
    order = root._get_fsdp_state()._comm_ctx.post_forward_order  # torch 2.11 and 2.12
    for group in order:
        group._post_forward_indices.clear()
    order.clear()


def is_sharded(module: nn.Module) -> bool:
    """Whether a model's forward is a collective."""
    return bool(shards(module)) or any(map(is_partitioned, module.parameters()))


def autocast(module: nn.Module, enabled: bool) -> torch.autocast:
    """Computation in bfloat16, where enabled.

    Where weights are shared out, autocast itself keeps no copies: those of all weights would stand at once, whole.
    """
    return torch.autocast(device_of(module).type, torch.bfloat16, enabled=enabled, cache_enabled=not is_sharded(module))


def device_of(module: nn.Module) -> torch.device:
    """Where a model computes; its weights may wait elsewhere."""
    return device() if is_sharded(module) else next(module.parameters()).device


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its parts, on every rank; a collective where it is shared out."""
    if is_partitioned(tensor):
        return gather(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def make_whole(module: nn.Module, here: bool) -> None:
    """Give a model its weights back, one by one, on the CPU, where `here`; elsewhere it loses them. A collective.

    It is then as it was before it was shared out: to be saved, not to be trained.
    """
    for part in shards(module):
        part.reshard()
    without_hooks(module)
    made: dict[nn.Parameter, nn.Parameter] = {}  # one that is tied occurs in several places
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter not in made:
                weights = whole(parameter).detach().cpu() if is_cut(parameter) else parameter.detach().cpu()
                made[parameter] = nn.Parameter(weights if here else weights.new_empty(0), parameter.requires_grad)
            owner._parameters[name] = made[parameter]


def is_cut(tensor: Tensor) -> bool:
    """Whether a rank may hold less than all of a tensor."""
    return is_partitioned(tensor) or isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    if is_partitioned(tensor):
        return own_partition(tensor)
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """All weights on every rank for a while: forwards are no collectives until it ends. Entering is one."""
    if any(map(is_partitioned, module.parameters())):
        with gathered_partitions(module):
            yield
        return
    parts: list[Any] = shards(module)
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()
