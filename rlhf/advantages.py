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


def rewards_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """What follows each token: G_t = r_t + gamma * G_{t+1}, the advantages of REINFORCE++ before normalisation.

    Hu et al. 2025, "REINFORCE++", eq. 5-6: no value model; the step's mean over all tokens is the baseline. rewards,
    mask [batch, response]; 0 under a False mask.
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


def rloo(rewards: Tensor, mask: Tensor, group: int) -> Tensor:
    """REINFORCE with a leave-one-out baseline: a response's reward less the mean of the others to its prompt.

    Kool et al. 2019; Ahmadian et al. 2024, "Back to Basics", eq. 7. rewards, mask [batch, response]; each `group` >= 2
    rows in turn answer one prompt. A response is one action, so all its tokens carry the same; 0 under a False mask.
    """
    totals = _totals(rewards, mask, group)
    others = (totals.sum(-1, keepdim=True) - totals) / (group - 1)
    return _spread((totals - others).to(rewards.dtype), mask)


def grpo(rewards: Tensor, mask: Tensor, group: int) -> Tensor:
    """Rewards standardised among the responses to one prompt (Shao et al. 2024, "DeepSeekMath", section 4.1.2).

    A = (R - mean) / deviation, with Bessel's correction; responses that all score the same teach nothing. Arguments
    and result as in `rloo`. Dividing by the deviation weighs prompts by how much their responses agree (Liu et al.
    2025, "Understanding R1-Zero-like training"), and where the KL is in the loss the optimum moves (docs/theory.md).
    """
    totals = _totals(rewards, mask, group)
    centred = totals - totals.mean(-1, keepdim=True)
    return _spread((centred / (totals.std(-1, keepdim=True) + 1e-6)).to(rewards.dtype), mask)


def _totals(rewards: Tensor, mask: Tensor, group: int) -> Tensor:
    """Rewards of responses [prompts, group], in float64: what the same ones differ by in a rounded mean is exactly 0.

    In float32 that rest, divided by a deviation that is a rest as well, would be an advantage.
    """
    return rewards.masked_fill(~mask, 0.0).double().sum(-1).view(-1, group)


def _spread(advantages: Tensor, mask: Tensor) -> Tensor:
    return advantages.reshape(-1, 1).expand_as(mask).masked_fill(~mask, 0.0)


def whiten(x: Tensor, mask: Tensor, *, shift: bool = True, scale: bool = True) -> Tensor:
    """Zero mean and unit deviation over the True positions of all ranks; 0 elsewhere.

    x, mask [batch, response]. shift: take the mean off, else it stays as it is (Ziegler et al. 2019, for rewards);
    scale: divide what differs from it by the deviation. Two sums in float64, so that the result does not depend on how
    rows are spread. With fewer than two positions in all, or no spread, nothing is scaled.
    """
    selected = x.masked_fill(~mask, 0.0).double()
    count, total = global_sum(torch.stack([mask.sum().double(), selected.sum()])).unbind()
    mean = total / count.clamp(min=1)
    centred = (selected - mean).masked_fill(~mask, 0.0)
    kept = torch.zeros_like(mean) if shift else mean
    if scale:
        variance = global_sum(centred.square().sum()) / (count - 1).clamp(min=1)
        centred = centred * torch.where(variance > 1e-16, variance.rsqrt(), torch.ones_like(variance))
    return (centred + kept).masked_fill(~mask, 0.0).to(x.dtype)
