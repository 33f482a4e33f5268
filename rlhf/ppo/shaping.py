"""From scores to per-token rewards."""

from __future__ import annotations

import torch
from torch import Tensor


def shape_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coef: float) -> Tensor:
    """The score at the last token, less a penalty at every token (Ziegler et al. 2019, eq. 2; Stiennon et al. 2020).

    r_t = -coef * kl_t + [t is last] * score. scores [batch]; kl (nats, per-token estimate), mask [batch, response];
    coef in reward per nat. Every row has at least one token. Result [batch, response], 0 under a False mask.
    """
    rewards = (-coef * kl).masked_fill(~mask, 0.0)
    last = mask.sum(-1) - 1
    rewards[torch.arange(len(mask), device=mask.device), last] += scores
    return rewards


def penalize_unfinished(scores: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """Take `penalty` off the scores [batch] of responses that ran out of length without a stop token.

    As Huang et al. 2024 ("The N+ implementation details of RLHF with PPO", detail 23.3) do with a fixed score; here
    the score stays and is lowered, so that a cut response can still be better or worse.
    """
    return scores - penalty * (~finished).to(scores.dtype)
