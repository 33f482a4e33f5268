"""Weights that DeepSpeed's ZeRO-3 has partitioned: a share of each on every process, gathered module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

OWNER = "zero_offload"  # under which a model knows the hooks of DeepSpeed that gather and release its weights


def is_partitioned(tensor: Tensor) -> bool:
    """Whether a parameter holds a share alone, and is empty between forwards."""
    return hasattr(tensor, "ds_id")


def own_partition(parameter: Any) -> Tensor:
    """This rank's share of a parameter, flat."""
    share: Tensor = parameter.ds_tensor
    return share


def gather(parameter: Any) -> Tensor:
    """A copy of the whole parameter, on every rank. A collective."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter]):
        copied: Tensor = parameter.detach().clone()
    return copied


@contextmanager
def gathered_partitions(module: nn.Module) -> Iterator[None]:
    """All weights on every rank for a while: forwards are no collectives until it ends. Entering is one."""
    from deepspeed.runtime.zero import GatheredParameters

    offload: Any = getattr(module, OWNER)
    with GatheredParameters(list(offload.module.parameters())):
        # Left in place, the hooks would release behind each module what was gathered here.
        for parameter in offload.module.parameters():
            parameter.ds_active_sub_modules.clear()
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload._register_deepspeed_module(offload.module)


def without_hooks(module: nn.Module) -> None:
    """Take off for good what gathers and releases the weights of a model, if something does."""
    offload: Any = getattr(module, OWNER, None)
    if offload is None:
        return
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks, offload.backward_hooks = [], []
    delattr(module, OWNER)
