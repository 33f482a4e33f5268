"""From a rollout to what the update fits: scores, rewards, advantages, returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.advantages import gae, grpo, rewards_to_go, rloo, whiten
from rlhf.config import PpoConfig
from rlhf.kl import estimate
from rlhf.ppo.shaping import RunningScores, penalize_overlong, penalize_unfinished, shape_rewards
from rlhf.types import Experience


@dataclass(frozen=True)
class Targets:
    """What the update fits, and what it came from."""

    advantages: Tensor  # [batch, response], normalised
    returns: Tensor  # [batch, response], what values should have been; 0 where no value model takes part
    rewards: Tensor  # [batch, response]: the score at the last token, less the KL penalty if its place is the reward
    kl_coef: float  # of the KL in the policy's loss; 0 where it is in the reward
    weights: Tensor | None = None  # [batch, response] truncated importance weights, trainer over sampler


def find_targets(experience: Experience, config: PpoConfig, coef: float, running: RunningScores | None) -> Targets:
    """What the update fits after a rollout; coef: the KL controller's, in reward per nat.

    running: the statistics of all scores so far, where scores are normalised by them. A collective.
    """
    mask = experience.mask
    divergence = estimate(experience.old_logprobs, experience.ref_logprobs, config.kl.estimator)
    in_reward = config.kl.place == "reward"
    scores = shape_scores(experience, config, running)
    rewards = shape_rewards(scores, divergence, mask, coef if in_reward else 0.0)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift=False)
    advantages, returns = find_advantages(rewards, experience.values, mask, config)
    if config.normalization != "none":
        advantages = whiten(advantages, mask, scale=config.normalization == "whiten")
    weights = None
    if config.importance_cap is not None:
        weights = importance_weights(experience, config.importance_cap)
    return Targets(advantages, returns, rewards, 0.0 if in_reward else coef, weights)


def shape_scores(experience: Experience, config: PpoConfig, running: RunningScores | None) -> Tensor:
    """Scores [batch]: normalised, scaled, clipped, then less what a response pays for its end and its length."""
    scores = running.normalize(experience.scores) if running else experience.scores
    scores = scores * config.score_scale
    if config.score_clip is not None:
        scores = scores.clamp(-config.score_clip, config.score_clip)
    scores = penalize_unfinished(scores, experience.finished, config.missing_eos_penalty)
    if config.overlong:
        longest = config.generation.max_new_tokens
        scores = penalize_overlong(scores, experience.mask, longest, config.overlong.tokens, config.overlong.penalty)
    return scores


def find_advantages(rewards: Tensor, values: Tensor, mask: Tensor, config: PpoConfig) -> tuple[Tensor, Tensor]:
    """Advantages before normalisation, and returns; both [batch, response]."""
    if config.advantage == "gae":
        advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
        if config.value_lam is not None:
            returns = gae(rewards, values, mask, config.gamma, config.value_lam)[1]
        return advantages, returns
    if config.advantage == "reinforce++":
        return rewards_to_go(rewards, mask, config.gamma), torch.zeros_like(rewards)
    compare = rloo if config.advantage == "rloo" else grpo
    return compare(rewards, mask, config.responses_per_prompt), torch.zeros_like(rewards)


def importance_weights(experience: Experience, cap: float) -> Tensor:
    """Truncated importance sampling (Yao et al. 2025): min(pi_trainer / pi_sampler, cap) of each token.

    Result [batch, response]. The two differ where the sampler computes otherwise than a training forward, or samples
    from a truncated distribution.
    """
    return (experience.old_logprobs - experience.sampler_logprobs).exp().clamp(max=cap)
