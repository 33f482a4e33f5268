"""What a policy does on prompts, as figures: of a training rollout, and of fixed prompts sampled with fixed noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.config import PpoConfig
from rlhf.distributed import device, gather_objects, global_sum, rank, world_size
from rlhf.ppo.experience import Actors, collect
from rlhf.types import Completion, Experience, Prompt, Reward

EVALUATION_STEP = 0  # keys the noise of evaluations; training steps count from 1


@dataclass(frozen=True)
class Answer:
    """A policy's response to one prompt."""

    completion: Completion
    score: float  # by the reward, normalised
    judged: float  # by the judge; the score where there is none
    kl: float  # nats to the reference


def rollout_statistics(
    experience: Experience, rewards: Tensor, returns: Tensor, divergence: Tensor
) -> dict[str, float]:
    """Means over the global batch, under the names others log; rewards, returns, divergence [batch, response]."""
    mask = experience.mask
    errors = (returns - experience.values).masked_fill(~mask, 0.0).double()
    kept = returns.masked_fill(~mask, 0.0).double()
    sums = [
        torch.tensor(float(len(mask))),
        experience.scores.sum(),
        divergence.masked_fill(~mask, 0.0).sum(),
        rewards.sum(),
        mask.sum(),
        experience.finished.sum(),
        *(part.sum() for part in (errors, errors.square(), kept, kept.square())),
    ]
    total = global_sum(torch.stack([part.double().cpu() for part in sums]).to(device())).tolist()
    count, scores, kl, reward, tokens, finished, error, error_2, value, value_2 = total
    variance = value_2 / tokens - (value / tokens) ** 2
    residual = error_2 / tokens - (error / tokens) ** 2
    return {
        "objective/scores": scores / count,
        "objective/kl": kl / count,  # nats per response
        "objective/rlhf_reward": reward / count,
        "tokens/response_length": tokens / count,
        "tokens/finished": finished / count,
        "val/explained_variance": 1 - residual / variance if variance > 0 else 0.0,
    }


def respond(
    actors: Actors, prompts: Sequence[Prompt], config: PpoConfig, seed: int, judge: Reward | None = None
) -> list[Answer]:
    """The answers to all prompts, in their order, sampled and scored by all ranks together and known to each.

    The noise depends on seed and row alone, so that two policies are compared on the same draws.
    """
    rows = range(rank(), len(prompts), world_size())
    found: list[tuple[int, Answer]] = []
    if len(rows):
        experience, completions = collect([prompts[i] for i in rows], rows, actors, config, (seed, EVALUATION_STEP))
        kl = (experience.old_logprobs - experience.ref_logprobs).masked_fill(~experience.mask, 0.0).sum(-1)
        scores = experience.scores.tolist()
        judged = judge(completions).tolist() if judge else scores
        answers = map(Answer, completions, scores, judged, kl.tolist())
        found = list(zip(rows, answers, strict=True))
    return [answer for _, answer in sorted((pair for part in gather_objects(found) for pair in part), key=_row)]


def _row(pair: tuple[int, Answer]) -> int:
    return pair[0]
