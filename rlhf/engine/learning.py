"""What engines in torch's own manner share: clipping, the update, the schedule, and the state of all that learns."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts

from rlhf.distributed import group_aside
from rlhf.engine import Writer
from rlhf.engine.optimizer import OptimizerOptions, pass_over
from rlhf.offload import Offloaded
from rlhf.sharding import whole

MOMENTS = ("exp_avg", "exp_avg_sq")
# A plain copy, complete when the call returns; also of what is in the CPU's memory already.
COPIED = StagingOptions(
    use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
)


class Learning:
    """The part of `rlhf.engine.Engine` behind the backward pass; parameters may be shared out over ranks.

    States are torch's distributed checkpoints: tensors by name, of which every rank writes a part, so that replicated
    and shared-out engines, on any number of ranks, read each other's.
    """

    def __init__(self, module: nn.Module, options: OptimizerOptions) -> None:
        self.module = module
        self.options = options
        self.named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.parameters = list(self.named.values())
        self.optimizer, self.schedule = options.build(self.parameters)
        # What AdamW would make in its first step: too late to say that memory does not suffice, and scattered there.
        for parameter in self.parameters:
            self.optimizer.state[parameter] = _fresh(parameter)
        self.offloaded = Offloaded(self._moments, changing=True)
        self.rest()
        self.total: Tensor | None = None  # the gradient's norm, once it is complete and was asked for
        self.known = math.nan  # the same as a number

    def norm(self) -> float:
        """The gradient's global norm before clipping."""
        if self.total is None:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            self.total = nn.utils.get_total_norm(gradients)
            self.known = float(whole(self.total))  # waits for the device, and for other ranks
        return self.known

    def step(self) -> float:
        """Clip to the global norm and update; a gradient that is not finite is dropped on every rank alike."""
        norm = self.norm()
        if math.isfinite(norm) and self.total is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.options.max_grad_norm, self.total)
            self.offloaded.fetch()
            self.optimizer.step()
        self._clear()
        self.schedule.step()
        return norm

    def skip(self, steps: int = 1) -> None:
        """Clear gradients and advance the schedule, without an update."""
        self._clear()
        pass_over(self.schedule, steps)

    def rest(self) -> None:
        """The optimizer's state goes away until the next update, where it is to be offloaded."""
        if self.options.offload:
            self.offloaded.release()

    def save(self, directory: Path) -> None:
        """Every rank writes its part. Raises OSError on all of them where one cannot."""
        _write(self._state(), None, directory)
        self.rest()

    def snapshot(self) -> Writer:
        """What `save` does, with a copy of the present state, in the CPU's memory.

        torch's `async_save` makes the same copy and gives each call a thread of its own; here one thread of the caller
        writes several states one after the other, for the collectives of a group must keep their order.
        """
        stager = DefaultStager(COPIED)
        state: Any = stager.stage(self._state())
        stager.close()
        self.rest()
        return functools.partial(_write, state, group_aside())

    def load(self, directory: Path) -> None:
        """Every rank reads what is its own, however many ranks wrote it. Raises OSError on all where one cannot."""
        state = self._state()
        _fill(state, directory, alone=not dist.is_initialized())
        steps = int(state["steps"])
        rates = [rate * self.options.share(steps) for rate in self.schedule.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.schedule.load_state_dict(self.schedule.state_dict() | {"last_epoch": steps, "_last_lr": rates})
        self.rest()

    def _moments(self) -> Iterator[Tensor]:
        return (state[moment] for state in self.optimizer.state.values() for moment in MOMENTS)

    def _clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.total = None

    def _state(self) -> dict[str, Any]:
        """All that learns, as tensors that loading fills in place."""
        self.offloaded.fetch()
        state = self.optimizer.state
        return {
            "weights": {name: parameter.detach() for name, parameter in self.named.items()},
            "optimizer": {
                name: {key: state[own][key] for key in ("step", *MOMENTS)} for name, own in self.named.items()
            },
            "steps": torch.tensor(self.schedule.last_epoch),
        }


def _fresh(parameter: nn.Parameter) -> dict[str, Tensor]:
    """AdamW's state before the first step; torch's fused one counts where the weights are."""
    moments = {moment: torch.zeros_like(parameter.detach()) for moment in MOMENTS}
    return {"step": torch.zeros((), device=parameter.device), **moments}


def load_weights(module: nn.Module, directory: Path) -> None:
    """Give a whole model, in this process alone, the weights and nothing else that the engine of one like it wrote."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
    _fill({"weights": weights}, directory, alone=True)


def _write(state: dict[str, Any], group: Any, directory: Path) -> None:
    try:
        save_parts(state, checkpoint_id=directory, process_group=group, no_dist=not dist.is_initialized())
    except CheckpointException as error:  # which is no Exception
        raise OSError(_cause(error)) from error


def _fill(state: dict[str, Any], directory: Path, alone: bool) -> None:
    try:
        load_parts(state, checkpoint_id=directory, no_dist=alone)
    except CheckpointException as error:
        raise OSError(f"{directory}: {_cause(error)}") from error


def _cause(error: CheckpointException) -> str:
    """The failure of the first rank that has one, on a line."""
    failures = [failure[0] for _, failure in sorted(error.failures.items())]
    return str(failures[0]).strip().split("\n")[0] if failures else "a part cannot be read or written"
