"""Advantages from rewards and values."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.distributed import global_sum


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    delta_t = r_t + gamma * V_{t+1} - V_t; A_t = delta_t + gamma * lam * A_{t+1}; return_t = A_t + V_t.
    rewards, values, mask [batch, response], mask True = response, contiguous from the first token; the response's end
    is terminal, so V after the last token is 0. What stands under a False mask does not matter. Both results are 0
    there.
    """
    rewards = rewards.masked_fill(~mask, 0.0)
    values = values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    following_advantage = torch.zeros_like(rewards[:, 0])
    following_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = delta + gamma * lam * following_advantage
        following_value = values[:, t]
        advantages[:, t] = following_advantage
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Zero mean and unit deviation over the True positions of all ranks; 0 elsewhere.

    x, mask [batch, response]. Two sums in float64, so that the result does not depend on how rows are spread. With
    fewer than two positions in all, or no spread, the mean is taken off and nothing is scaled.
    """
    selected = x.masked_fill(~mask, 0.0).double()
    count, total = global_sum(torch.stack([mask.sum().double(), selected.sum()])).unbind()
    mean = total / count.clamp(min=1)
    centred = (selected - mean).masked_fill(~mask, 0.0)
    variance = global_sum(centred.square().sum()) / (count - 1).clamp(min=1)
    scale = torch.where(variance > 1e-16, variance.rsqrt(), torch.ones_like(variance))
    return (centred * scale).to(x.dtype)
