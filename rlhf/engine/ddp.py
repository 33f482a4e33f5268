"""Replicated training: one process alone, or torch's DistributedDataParallel over several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlhf.distributed import is_main, world_size

STATE = "state.pt"


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
            # Gradients live in the buckets that are sent: beside them they would take as much memory once more.
            self.wrapped = DistributedDataParallel(
                module, device_ids=own, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.name = type(self.wrapped).__name__
        self.options = options
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.95)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, options.share)
        if isinstance(self.wrapped, DistributedDataParallel):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=options.bfloat16):
                warm_buckets(self.wrapped, self.device)

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

    def skip(self, steps: int = 1) -> None:
        """Clear gradients and advance the schedule, without an update."""
        self.optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # torch takes it for a mistake that the schedule moves before the optimizer
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(steps):
                self.schedule.step()

    def save(self, directory: Path) -> None:
        """One file with everything that learns; all ranks hold the same, so the main one writes."""
        if not is_main():
            return
        directory.mkdir()
        state = {
            "weights": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        torch.save(state, directory / STATE)

    def load(self, directory: Path) -> None:
        """Every rank reads the file."""
        state = torch.load(directory / STATE, map_location=self.device, weights_only=True)
        _copy(state["weights"], self.parameters)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def load_weights(module: nn.Module, directory: Path) -> None:
    """Give a model the weights, and nothing else, that the engine of one like it wrote."""
    state = torch.load(directory / STATE, map_location="cpu", weights_only=True, mmap=True)
    _copy(state["weights"], [parameter for parameter in module.parameters() if parameter.requires_grad])


def _copy(weights: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter, saved in zip(parameters, weights, strict=True):
            parameter.copy_(saved)


def warm_buckets(model: DistributedDataParallel, device: torch.device) -> None:
    """One backward whose gradient is thrown away, through a model of token ids that gives logits, and perhaps values.

    DDP cuts its buckets anew after the first backward, and sums of floats depend on the cut. Made before the first
    step, the new cut is that of all steps, also of those after a resume.
    """
    tokens = torch.zeros((1, 2), dtype=torch.long, device=device)
    apart = model.require_backward_grad_sync
    model.require_backward_grad_sync = True
    output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    values = getattr(output, "state_values", None)  # of a head beside the logits
    whole = output.logits.float().sum() + (0.0 if values is None else values.sum())
    (whole * 0.0).backward()
    model.require_backward_grad_sync = apart
    model.zero_grad(set_to_none=True)
