"""AdamW with a linear warm-up and decay: the same under every engine."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW (Loshchilov & Hutter 2019) with a linear warm-up and decay."""

    learning_rate: float
    learning_rate_end: float  # share of the rate at the last step
    warmup_steps: int  # optimizer steps
    total_steps: int  # optimizer steps
    weight_decay: float
    max_grad_norm: float
    bfloat16: bool = False  # compute in bfloat16
    offload: bool = False  # its state waits in the CPU's memory between the updates of two steps

    def share(self, step: int) -> float:
        """The learning rate's share at an optimizer step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        left = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        return self.learning_rate_end + (1 - self.learning_rate_end) * min(max(left, 0.0), 1.0)

    def build(self, parameters: Iterable[nn.Parameter]) -> tuple[torch.optim.AdamW, LambdaLR]:
        """The optimizer of some parameters, and its schedule."""
        optimizer = torch.optim.AdamW(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.95), fused=True
        )
        return optimizer, LambdaLR(optimizer, self.share)


def pass_over(schedule: LambdaLR, steps: int) -> None:
    """Advance a schedule over steps whose updates do not happen."""
    with warnings.catch_warnings():  # torch takes it for a mistake that the schedule moves before the optimizer
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(steps):
            schedule.step()
