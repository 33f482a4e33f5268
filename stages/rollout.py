"""What a policy does on prompts, as figures: of a training rollout, and of fixed prompts sampled with fixed noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf.config import PpoConfig
from rlhf.distributed import device, gather_objects, global_sum, rank, world_size
from rlhf.ppo.experience import Actors, collect
from rlhf.ppo.targets import Targets
from rlhf.types import Completion, Experience, Prompt, Reward

EVALUATION_STEP = 0  # keys the noise of evaluations; training steps count from 1


@dataclass(frozen=True)
class Answer:
    """A policy's response to one prompt."""

    completion: Completion
    score: float  # by the reward, normalised
    judged: float  # by the judge; the score where there is none
    kl: float  # nats to the reference


def rollout_statistics(experience: Experience, targets: Targets) -> dict[str, float]:
    """Means over the global batch, under the names others log."""
    mask = experience.mask
    errors, kept, divergence, mismatch = (
        field.masked_fill(~mask, 0.0).double()
        for field in (
            targets.returns - experience.values,
            targets.returns,
            experience.old_logprobs - experience.ref_logprobs,  # k1, whichever estimate the penalty takes
            # The sampler's tokens, so that k1 of KL(sampler || trainer) is never negative in expectation.
            experience.sampler_logprobs - experience.old_logprobs,
        )
    )
    sums = {
        "rows": torch.tensor(float(len(mask))),
        "tokens": mask.sum(),
        "scores": experience.scores.sum(),
        "kl": divergence.sum(),
        "reward": targets.rewards.sum(),
        "finished": experience.finished.sum(),
        "error": errors.sum(),
        "error_2": errors.square().sum(),
        "value": kept.sum(),
        "value_2": kept.square().sum(),
        "mismatch": mismatch.sum(),
        **{f"term {name}": scores.sum() for name, scores in experience.terms.items()},
    }
    if targets.weights is not None:
        sums["weights"] = targets.weights.masked_fill(~mask, 0.0).sum()
    stacked = torch.stack([part.double().cpu() for part in sums.values()]).to(device())
    total = dict(zip(sums, global_sum(stacked).tolist(), strict=True))
    rows, tokens = total["rows"], total["tokens"]
    variance = total["value_2"] / tokens - (total["value"] / tokens) ** 2
    residual = total["error_2"] / tokens - (total["error"] / tokens) ** 2
    figures = {
        "objective/scores": total["scores"] / rows,
        "objective/kl": total["kl"] / rows,  # nats per response
        "objective/rlhf_reward": total["reward"] / rows,
        "tokens/response_length": total["tokens"] / rows,
        "tokens/finished": total["finished"] / rows,
        "val/explained_variance": 1 - residual / variance if variance > 0 else 0.0,
        "policy/mismatch_kl": total["mismatch"] / tokens,  # nats per token, sampler to trainer
    }
    if targets.weights is not None:
        figures["policy/importance_weight"] = total["weights"] / tokens
    return figures | {f"objective/scores_{name}": total[f"term {name}"] / rows for name in experience.terms}


def respond(
    actors: Actors, prompts: Sequence[Prompt], config: PpoConfig, seed: int, judge: Reward | None = None
) -> list[Answer]:
    """The answers to all prompts, in their order, sampled and scored by all ranks together and known to each.

    The noise depends on seed and row alone, so that two policies are compared on the same draws.
    """
    own = range(rank(), len(prompts), world_size())
    rows = list(own) or [0] * (world_size() > 1)  # a rank without prompts makes the others' calls
    found: list[tuple[int, Answer]] = []
    if rows:
        experience, completions = collect([prompts[i] for i in rows], rows, actors, config, (seed, EVALUATION_STEP))
        kl = (experience.old_logprobs - experience.ref_logprobs).masked_fill(~experience.mask, 0.0).sum(-1)
        scores = experience.scores.tolist()
        judged = judge(completions).tolist() if judge else scores
        answers = map(Answer, completions, scores, judged, kl.tolist())
        found = list(zip(own, answers, strict=True)) if own else []
    return [answer for _, answer in sorted((pair for part in gather_objects(found) for pair in part), key=_row)]


def _row(pair: tuple[int, Answer]) -> int:
    return pair[0]
