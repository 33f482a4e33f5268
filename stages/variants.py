"""The settings of PPO that `rlhf study optimum` compares, and where theory expects each to settle. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.analysis.optimum import Array, Response, k2_rule, k3_rule, optimum, settled
from rlhf.config import GenerationConfig, KlConfig, PpoConfig

LONGEST = 2  # tokens of a response
GROUP = 16  # responses to a prompt that estimators without a value model compare
ROWS = 512  # responses a step
# With k1 in the reward, nothing divided by a deviation and a rate that decays, these converge to the optimum. A step of
# GAE costs most, so it has fewer; the noise of REINFORCE++ is largest, so it has more, each of new responses.
EXACT: Mapping[str, Mapping[str, Any]] = {
    "gae": {"normalize_advantages": "none", "value_start": "policy", "steps": 150},
    "rloo": {},
    "reinforce++": {"normalize_advantages": "center", "steps": 300, "epochs": 1},
}
# One thing, or two, that somebody may well set otherwise; behind the sign what is set.
OTHERWISE: Mapping[str, Mapping[str, Any]] = {
    "gae:whiten": {"normalize_advantages": "whiten", "value_start": "policy", "steps": 150},
    "grpo": {},
    "rloo:constant": {"learning_rate_end": 1.0},
    "rloo:k2": {"kl": ("k2", "loss")},
    "rloo:k3": {"kl": ("k3", "loss")},
    "rloo:k2:whiten": {"kl": ("k2", "loss"), "normalize_advantages": "whiten"},
    "grpo:k3": {"kl": ("k3", "loss")},  # as Shao et al. 2024 have it
}


def settings(name: str, beta: float, steps: int | None = None) -> PpoConfig:
    """The settings of a variant; beta: the KL's coefficient, in reward per nat. steps: None for the variant's own."""
    chosen = dict(EXACT[name] if name in EXACT else OTHERWISE[name])
    estimator, place = chosen.pop("kl", ("k1", "reward"))
    common: dict[str, Any] = {
        "steps": 200,
        "advantage": name.partition(":")[0],
        "prompts_per_step": ROWS // GROUP,
        "responses_per_prompt": GROUP,
        "generation": GenerationConfig(max_new_tokens=LONGEST, batch_size=ROWS),
        "kl": KlConfig(coef=beta, estimator=estimator, place=place),
        "normalize_scores": "none",
        "lam": 1.0,
        "epochs": 2,
        "minibatches": 2,
        "micro_batch_tokens": 16 * ROWS,  # a minibatch in one piece
        "learning_rate": 2e-3,
        "learning_rate_end": 0.0,
        "evaluate_every": 0,
    }
    return PpoConfig(**(common | chosen | ({} if steps is None else {"steps": steps})))


def expected(config: PpoConfig, reference: Array, rewards: Array, responses: Sequence[Response]) -> Array:
    """The policy [prompts, responses] at which the settings' expected gradient is zero; docs/theory.md says why.

    Where rewards are divided by a deviation that depends on the policy, beta is multiplied by it until both agree. They
    may agree in certainty alone: the surer the policy, the smaller the deviation, and the weaker the penalty.
    """
    beta = config.kl.coef
    if config.kl.place == "reward":
        return optimum(reference, rewards, beta)
    rule = k2_rule if config.kl.estimator == "k2" else k3_rule
    policy, scale = reference, np.ones(len(reference))
    for _ in range(100):
        policy = settled(reference, rewards, responses, lambda prompt: rule(beta * scale[prompt]))  # noqa: B023
        # Never 0, whose exponentials are infinite.
        scale = np.maximum((scale + deviations(policy, rewards, responses, config)) / 2, 0.01)
    return policy


def deviations(policy: Array, rewards: Array, responses: Sequence[Response], config: PpoConfig) -> Array:
    """What each prompt's advantages [prompts] are divided by, with the KL in the loss; of large batches and groups."""
    means = (policy * rewards).sum(-1, keepdims=True)
    squares = (rewards - means) ** 2
    variances = (policy * squares).sum(-1)
    if config.advantage == "grpo":
        return np.asarray(np.sqrt(variances))
    if config.normalization != "whiten":
        return np.ones(len(policy))
    # Of all tokens of the batch. The mean of the others in a group has a variance of its own.
    tokens = policy * np.array([len(response) for response in responses])
    spread = (tokens * (squares + variances[:, None] / (config.responses_per_prompt - 1))).sum() / tokens.sum()
    centre = (tokens * (rewards - means)).sum() / tokens.sum()
    return np.full(len(policy), np.sqrt(max(spread - centre**2, 0.0)))
