"""Several rewards as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.types import Completion, Reward

ALONE = "reward"  # the name of one that is all there is


def named_rewards(reward: Reward) -> Mapping[str, Reward]:
    """The rewards that make up one, by name."""
    return reward.rewards if isinstance(reward, WeightedRewards) else {ALONE: reward}


def reads_tokens(reward: Reward) -> bool:
    """Whether a reward's cost is that of a model's forwards, so that rows are worth dealing out over ranks."""
    return bool(getattr(reward, "reads_tokens", False))


@dataclass(frozen=True)
class WeightedRewards:
    """The weighted sum of rewards, each known by a name under which it is logged."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    def terms(self, completions: Sequence[Completion]) -> dict[str, Tensor]:
        """Each reward's own scores [batch], before its weight."""
        return {name: reward(completions) for name, reward in self.rewards.items()}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum [batch] of what `terms` gave."""
        return torch.stack([self.weights[name] * scores for name, scores in terms.items()]).sum(0)

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Scores [batch]; see `rlhf.types.Reward`."""
        return self.total(self.terms(completions))
