"""Experiences of random figures in float64, without any model: for tests of what PPO makes of a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from rlhf.config import GenerationConfig, PpoConfig
from rlhf.types import Experience
from tests import reference

LONGEST = 8
CONFIG = PpoConfig(generation=GenerationConfig(max_new_tokens=LONGEST))
# Each estimator in a form whose rewards and scores are shaped in another way, so that each is seen once at least.
ESTIMATORS = {
    "gae": {"advantage": "gae", "gamma": 0.97, "lam": 0.9, "value_lam": 0.6, "score_clip": 1.0},
    "gae whitened": {"advantage": "gae", "whiten_rewards": True, "normalize_advantages": "center"},
    "rloo": {"advantage": "rloo", "responses_per_prompt": 2, "score_scale": 0.5, "importance_cap": 1.1},
    "reinforce++": {
        "advantage": "reinforce++",
        "gamma": 0.9,
        "missing_eos_penalty": 0.7,
        "normalize_scores": "running",
    },
    "grpo": {"advantage": "grpo", "responses_per_prompt": 3, "overlong": {"tokens": 3, "penalty": 0.8}},
}


def settings_of(name: str, **changes: object) -> PpoConfig:
    """An estimator's settings."""
    return PpoConfig.model_validate(
        CONFIG.model_dump() | {"prompts_per_step": 4, "minibatches": 1} | ESTIMATORS[name] | changes
    )


@dataclass(frozen=True)
class Rows:
    """An experience without padding, as numpy rows."""

    old_logprobs: list[np.ndarray]
    sampler_logprobs: list[np.ndarray]
    ref_logprobs: list[np.ndarray]
    values: list[np.ndarray]
    scores: np.ndarray
    finished: list[bool]


def random_rows(lengths: Sequence[int], seed: int) -> Rows:
    """Log-probs near -2, values and scores near 0."""
    rng = np.random.default_rng(seed)
    old = [rng.normal(-2, 0.5, length) for length in lengths]
    sampler, ref = ([row + rng.normal(0, 0.3, len(row)) for row in old] for _ in range(2))
    values = [rng.normal(0, 1, length) for length in lengths]
    return Rows(old, sampler, ref, values, rng.normal(0, 1.5, len(lengths)), list(rng.random(len(lengths)) < 0.5))


def experience_of(rows: Rows, poison: float = 99.0, width: int | None = None) -> Experience:
    """The rows side by side, with poison behind each."""

    def of(field: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(reference.padded(field, poison, width)[0])

    mask = torch.from_numpy(reference.padded(rows.old_logprobs, poison, width)[1])
    return Experience(
        tokens=torch.zeros(len(mask), mask.shape[1] + 1, dtype=torch.long),
        attention_mask=torch.cat([torch.ones(len(mask), 1, dtype=torch.bool), mask], -1),
        rows=torch.arange(len(mask)),
        mask=mask,
        old_logprobs=of(rows.old_logprobs),
        sampler_logprobs=of(rows.sampler_logprobs),
        ref_logprobs=of(rows.ref_logprobs),
        values=of(rows.values),
        scores=torch.from_numpy(rows.scores),
        finished=torch.tensor(rows.finished),
    )


def permuted(experience: Experience, order: Sequence[int]) -> Experience:
    """The same rows in another order."""
    tensors = {each.name: getattr(experience, each.name) for each in fields(experience) if each.name != "terms"}
    return replace(experience, **{name: tensor[list(order)] for name, tensor in tensors.items()})
