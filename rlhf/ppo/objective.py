"""What PPO minimises on one minibatch: clipped surrogate, values, and KL and entropy where they are part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from rlhf.config import PpoConfig
from rlhf.logprobs import TokenLogprobs
from rlhf.losses import kl_loss, ppo_policy_loss, ppo_value_loss
from rlhf.ppo.targets import Targets
from rlhf.types import Experience

Cut: TypeAlias = Callable[[Tensor], Tensor]  # a micro-batch's part [rows, response] of a field of the experience


@dataclass(frozen=True)
class Objective:
    """The losses of one minibatch; those of its micro-batches add up."""

    config: PpoConfig
    targets: Targets
    n_tokens: float  # of the minibatch, over ranks
    learn_policy: bool = True

    def policy(
        self, new: TokenLogprobs, experience: Experience, mask: Tensor, of: Cut
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss and its shares of the statistics.

        loss = surrogate + kl_coef * KL estimate - entropy_bonus * entropy, each a mean over the minibatch's tokens.
        """
        config, targets = self.config, self.targets
        surrogate = ppo_policy_loss(
            new.logprobs,
            of(experience.old_logprobs),
            of(targets.advantages),
            mask,
            config.clip,
            self.n_tokens,
            clip_high=config.clip_high,
            ratio=config.ratio,
            weights=None if targets.weights is None else of(targets.weights),
        )
        entropy = new.entropy.masked_fill(~mask, 0.0).sum() / self.n_tokens
        loss = surrogate.loss
        shares = {
            "loss/policy": surrogate.loss,
            "policy/clipfrac": surrogate.clip_fraction,
            "policy/approxkl": surrogate.approx_kl,
            "objective/entropy": entropy,
        }
        if config.entropy_bonus:
            loss = loss - config.entropy_bonus * entropy
        if config.kl.place == "loss" and config.kl.estimator != "k1":
            divergence = kl_loss(new.logprobs, of(experience.ref_logprobs), mask, config.kl.estimator, self.n_tokens)
            loss = loss + targets.kl_coef * divergence
            shares["loss/kl"] = divergence
        return loss, {name: share.detach() for name, share in shares.items()}

    def value(self, values: Tensor, experience: Experience, mask: Tensor, of: Cut) -> tuple[Tensor, dict[str, Tensor]]:
        """The value model's loss and its shares of the statistics."""
        returns, clip = of(self.targets.returns), self.config.value_clip
        found = ppo_value_loss(values, of(experience.values), returns, mask, clip, self.n_tokens)
        return found.loss, {"loss/value": found.loss.detach(), "value/clipfrac": found.clip_fraction}
