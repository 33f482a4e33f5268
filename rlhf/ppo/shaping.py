"""From scores to per-token rewards."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf.distributed import device, global_sum


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


def penalize_overlong(scores: Tensor, mask: Tensor, longest: int, tokens: int, penalty: float) -> Tensor:
    """Take up to `penalty` off the scores [batch] of responses that reach into the last `tokens` of `longest`.

    Nothing at longest - tokens, all of it at the end, linearly between (Yu et al. 2025, "DAPO", eq. 13). mask
    [batch, response].
    """
    beyond = (mask.sum(-1) - (longest - tokens)).clamp(min=0).to(scores.dtype)
    return scores - penalty * beyond / tokens


class RunningScores:
    """Mean and deviation of all scores seen so far, over all ranks, by which scores are normalised.

    A step's scores count before they are normalised, so that the first step's are too. Merging by Chan et al. 1979.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared differences from the mean

    @property
    def deviation(self) -> float:
        """With Bessel's correction; 1 while nothing differs."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return math.sqrt(variance) if variance > 1e-16 else 1.0

    def normalize(self, scores: Tensor) -> Tensor:
        """Take in a step's scores [batch], of this rank, and give them normalised. A collective."""
        own = scores.double()
        sums = torch.stack([torch.tensor(float(len(own)), dtype=torch.float64), own.sum().cpu()])
        count, total = global_sum(sums.to(device())).tolist()
        mean = total / count
        squares = float(global_sum((own - mean).square().sum().to(device())))
        together = self.count + count
        self.squares += squares + (mean - self.mean) ** 2 * self.count * count / together
        self.mean += (mean - self.mean) * count / together
        self.count = together
        return ((own - self.mean) / self.deviation).to(scores.dtype)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint must hold."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up a checkpoint's state."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
