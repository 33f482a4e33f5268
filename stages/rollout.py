"""What a policy does on prompts, as figures: of a training rollout, of fixed held-out prompts, of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.config import PpoConfig
from rlhf.distributed import device, gather_objects, global_sum, rank, world_size
from rlhf.ppo.experience import Actors, collect
from rlhf.types import Completion, Experience, Prompt
from stages.context import StageContext

HELD_OUT_PROMPTS = 64  # sampled at each evaluation while training
HELD_OUT_STEP = 0  # keys the noise of evaluations; training steps count from 1


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
    actors: Actors, prompts: Sequence[Prompt], config: PpoConfig, seed: int
) -> tuple[list[Completion], list[float], list[float]]:
    """Completions, normalised scores and KL to the reference (nats) of all prompts, spread over ranks, on every rank.

    The noise depends on seed and row alone, so that two policies are compared on the same draws.
    """
    rows = range(rank(), len(prompts), world_size())
    found: list[tuple[int, Completion, float, float]] = []
    if len(rows):
        experience, completions = collect([prompts[i] for i in rows], rows, actors, config, (seed, HELD_OUT_STEP))
        kl = (experience.old_logprobs - experience.ref_logprobs).masked_fill(~experience.mask, 0.0).sum(-1)
        found = list(zip(rows, completions, experience.scores.tolist(), kl.tolist(), strict=True))
    ordered = sorted((row for part in gather_objects(found) for row in part), key=lambda row: row[0])
    return [row[1] for row in ordered], [row[2] for row in ordered], [row[3] for row in ordered]


def evaluate_held_out(context: StageContext, actors: Actors, prompts: Sequence[Prompt], step: int) -> float:
    """The mean score of the present policy on fixed held-out prompts, always with the same noise.

    Figures and samples go to the tracker.
    """
    chosen = prompts[:HELD_OUT_PROMPTS]
    completions, scores, kl = respond(actors, chosen, context.recipe.ppo, context.recipe.seed)
    lengths = [len(completion.response_tokens) for completion in completions]
    rows = [
        {"step": step, "prompt": c.prompt.text, "response": c.response, "score": score, "kl": nats}
        for c, score, nats in zip(completions, scores, kl, strict=True)
    ]
    context.tracker.table(step, "held-out", rows)
    count = len(completions)
    figures = {
        "eval/scores": sum(scores) / count,
        "eval/kl": sum(kl) / count,
        "eval/response_length": sum(lengths) / count,
    }
    context.tracker.log(step, figures)
    return figures["eval/scores"]
