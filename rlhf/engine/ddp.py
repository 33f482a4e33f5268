"""Replicated training: one process alone, or torch's DistributedDataParallel over several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlhf.distributed import world_size


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW (Loshchilov & Hutter 2019) with a linear warm-up and decay."""

    learning_rate: float
    learning_rate_end: float  # share of the rate at the last step
    warmup_steps: int  # optimizer steps
    total_steps: int  # optimizer steps
    weight_decay: float
    max_grad_norm: float
    bfloat16: bool = False  # compute in bfloat16 by autocast

    def share(self, step: int) -> float:
        """The learning rate's share at an optimizer step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        left = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        return self.learning_rate_end + (1 - self.learning_rate_end) * min(max(left, 0.0), 1.0)


class DdpEngine:
    """See `rlhf.engine.Engine`."""

    def __init__(self, module: nn.Module, options: OptimizerOptions) -> None:
        self.module = module.train()
        self.wrapped: Callable[..., Any] = module
        self.device = next(module.parameters()).device
        if world_size() > 1:
            own = None if self.device.index is None else [self.device.index]
            # The buffers of these models are constants, and sending them would add a collective to every forward.
            self.wrapped = DistributedDataParallel(module, device_ids=own, broadcast_buffers=False)
        self.name = type(self.wrapped).__name__
        self.options = options
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.95)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, options.share)

    def __call__(self, **inputs: Any) -> Any:
        """The forward pass of training."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bfloat16):
            return self.wrapped(**inputs)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Without communication but for the last one: DDP decides in the forward, so it must stand inside."""
        apart = isinstance(self.wrapped, DistributedDataParallel) and not last
        with self.wrapped.no_sync() if apart else nullcontext():  # type: ignore[attr-defined]
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient, undoing DDP's average over ranks."""
        (loss * world_size()).backward()  # type: ignore[no-untyped-call]

    def step(self) -> float:
        """Clip to the global norm and update; a gradient that is not finite is dropped on every rank alike."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.options.max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return norm
