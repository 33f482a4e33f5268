"""A step of PPO put together from the definitions of `tests.reference`: its targets, and its losses by autograd.

Of ours it knows the settings alone. Every sequence goes through the models by itself, unpadded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.config import PpoConfig
from tests import reference
from tests.experiences import Rows


def targets_of(rows: Rows, config: PpoConfig, kl_coef: float) -> dict[str, list[np.ndarray]]:
    """Rewards, advantages, returns and weights of each row: what `rlhf.ppo.targets` makes of an experience."""
    scores = reference.running_scores([rows.scores])[0] if config.normalize_scores == "running" else rows.scores
    rewards = []
    for old, ref, score, finished in zip(rows.old_logprobs, rows.ref_logprobs, scores, rows.finished, strict=True):
        fines = 0.0 if finished else config.missing_eos_penalty
        if config.overlong:
            fines += reference.overlong(
                len(old), config.generation.max_new_tokens, config.overlong.tokens, config.overlong.penalty
            )
        divergence = np.array([reference.kl(*pair, config.kl.estimator) for pair in zip(old, ref, strict=True)])
        coef = kl_coef if config.kl.place == "reward" else 0.0
        shaped = reference.shape_score(score, config.score_scale, config.score_clip, fines)
        rewards.append(reference.shape_rewards(shaped, divergence, coef))
    if config.whiten_rewards:
        rewards = reference.whiten(rewards, shift=False)
    returns = [np.zeros(len(row)) for row in rewards]
    if config.advantage == "gae":
        pairs = list(zip(rewards, rows.values, strict=True))
        advantages = [reference.gae(*pair, config.gamma, config.lam) for pair in pairs]
        lam = config.lam if config.value_lam is None else config.value_lam
        returns = [reference.gae(*pair, config.gamma, lam) + pair[1] for pair in pairs]
    elif config.advantage == "reinforce++":
        advantages = [reference.rewards_to_go(row, config.gamma) for row in rewards]
    else:
        advantages = getattr(reference, config.advantage)(rewards, config.responses_per_prompt)
    if config.normalization != "none":
        advantages = reference.whiten(advantages, scale=config.normalization == "whiten")
    weights = [
        reference.importance_weights(*pair, config.importance_cap or 1.0)
        for pair in zip(rows.old_logprobs, rows.sampler_logprobs, strict=True)
    ]
    return {"rewards": rewards, "advantages": advantages, "returns": returns, "weights": weights}


@dataclass(frozen=True)
class Row:
    """One prompt and its response, in token ids."""

    prompt: list[int]
    response: list[int]

    @property
    def tokens(self) -> Tensor:
        return torch.tensor([self.prompt + self.response])

    @property
    def before(self) -> slice:
        """The positions before each response token: what is said there is said of it."""
        return slice(len(self.prompt) - 1, len(self.prompt) + len(self.response) - 1)


def distributions(policy: nn.Module, sequence: Row, temperature: float) -> Tensor:
    """Log-probs [response, vocabulary] in float64."""
    logits: Tensor = policy(input_ids=sequence.tokens).logits[0]
    return (logits.double() / temperature).log_softmax(-1)[sequence.before]


def chosen(log_distributions: Tensor, sequence: Row) -> Tensor:
    """Log-probs [response] of the tokens."""
    return torch.stack([row[token] for row, token in zip(log_distributions, sequence.response, strict=True)])


def values_of(model: nn.Module, sequence: Row) -> Tensor:
    """Values [response] of a value model, or of a policy with a value head."""
    output: Any = model(input_ids=sequence.tokens)
    found: Tensor = output.state_values[0] if hasattr(output, "state_values") else output.logits[0, :, 0]
    return found.double()[sequence.before]


def policy_terms(
    sequence: Row, log_distributions: Tensor, rows: Rows, targets: dict[str, Any], i: int, config: PpoConfig
) -> dict[str, Tensor]:
    """One response's sums of surrogate, KL estimate and entropy, to differentiate; see `reference.policy_loss`."""
    new = chosen(log_distributions, sequence)
    log_ratios = [new[t] - float(rows.old_logprobs[i][t]) for t in range(len(new))]
    whole = sum(float(log_ratio.detach()) for log_ratio in log_ratios) / len(log_ratios)
    low, high = 1 - config.clip, 1 + (config.clip_high or config.clip)
    surrogate = divergence = torch.tensor(0.0, dtype=torch.float64)
    for t, log_ratio in enumerate(log_ratios):
        ratio = log_ratio.exp()
        if config.ratio == "sequence":  # Zheng et al. 2025, eq. 13: the response's value, the token's gradient
            ratio = float(np.exp(whole)) * ratio / float(ratio.detach())
        advantage = float(targets["advantages"][i][t])
        weight = 1.0 if config.importance_cap is None else float(targets["weights"][i][t])
        held = low if ratio < low else high if ratio > high else ratio
        surrogate = surrogate + weight * min(ratio * advantage, held * advantage)
        away = float(rows.ref_logprobs[i][t]) - new[t]
        if config.kl.place == "loss":
            divergence = divergence + (away**2 / 2 if config.kl.estimator == "k2" else away.exp() - 1 - away)
    entropy = -(log_distributions.exp() * log_distributions).sum()
    return {"surrogate": surrogate, "kl": divergence, "entropy": entropy}


def value_error(values: Tensor, rows: Rows, targets: dict[str, Any], i: int, clip: float | None) -> Tensor:
    """One response's sum of half the larger squared error."""
    total = torch.tensor(0.0, dtype=torch.float64)
    for t, value in enumerate(values):
        old, wanted = float(rows.values[i][t]), float(targets["returns"][i][t])
        now = float(value.detach())
        near = value if clip is None or abs(now - old) <= clip else old + np.sign(now - old) * clip
        total = total + max((value - wanted) ** 2, (near - wanted) ** 2) / 2
    return total


def losses_of(
    models: dict[str, nn.Module],
    sequences: Sequence[Row],
    rows: Rows,
    targets: dict[str, Any],
    config: PpoConfig,
    kl_coef: float,
) -> dict[str, Tensor]:
    """Means over the step's tokens: the parts, `policy` (all that the policy minimises) and `value`."""
    tokens = sum(len(sequence.response) for sequence in sequences)
    parts: dict[str, Tensor] = {}
    for i, sequence in enumerate(sequences):
        found = policy_terms(
            sequence, distributions(models["policy"], sequence, config.generation.temperature), rows, targets, i, config
        )
        if "value" in models:
            found["value"] = value_error(values_of(models["value"], sequence), rows, targets, i, config.value_clip)
        parts = {name: parts.get(name, 0) + part / tokens for name, part in found.items()}
    coef = kl_coef if config.kl.place == "loss" else 0.0
    whole = -parts["surrogate"] + coef * parts["kl"] - config.entropy_bonus * parts["entropy"]
    if config.has_value and not config.has_critic:  # on one trunk
        whole = whole + config.value_coef * parts["value"]
    return parts | {"policy": whole}
