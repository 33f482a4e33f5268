"""Best-of-n: what the reward alone buys, without training. The baseline that PPO has to beat at the same KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rlhf.analysis.statistics import bootstrap_interval, mean, wins
from rlhf.distributed import gather_objects, rank, world_size
from rlhf.models import load_policy
from rlhf.tokenization import Tokenization
from rlhf.types import Completion, Prompt
from stages.context import StageContext
from stages.frozen import freeze
from stages.rewards import load_reward, weighted
from stages.sampling import sample


def best_of(
    context: StageContext,
    prompts: Sequence[Prompt],
    tokenization: Tokenization,
    before: Sequence[float],
    judge: Callable[[Sequence[Completion]], Sequence[float]] | None,
) -> list[dict[str, Any]]:
    """For n = 1, 2, 4, ... the SFT model's best of n responses by the reward, as the judge sees it.

    before: the judge's scores of other responses of the same model, to win against; judge: None for the reward. The
    responses are drawn once, and cut into groups of n, so that the smaller n are measured several times. Of each n:
    score, gold (`judged` without a gold scorer), win rate, and the KL to the SFT model, log n - (n - 1) / n nats
    (Stiennon et al. 2020, appendix G.3; an upper bound).
    """
    recipe, most = context.recipe, context.recipe.evaluate.best_of or 1
    judged = "gold" if recipe.evaluate.gold else "judged"
    sizes = [2**i for i in range(int(math.log2(most)) + 1)]
    policy = freeze(load_policy(context.inputs["sft"].model, tokenization, recipe.model), recipe)
    repeated = [prompt for _ in range(sizes[-1]) for prompt in prompts]
    # Noise of its own: the responses of `before` would tie with themselves.
    completions = sample(policy, tokenization, recipe, repeated, seed=recipe.seed + 2)
    reward = weighted(load_reward(context.inputs["reward"], tokenization, recipe), tokenization, recipe)
    scores = shared_out(lambda part: reward(part).tolist(), completions)
    golds = shared_out(judge, completions) if judge else scores
    found = []
    for size in sizes:
        width = size * len(prompts)
        groups = [
            range(start + i, start + i + width, len(prompts))
            for i in range(len(prompts))
            for start in range(0, len(repeated), width)
        ]
        chosen = [max(group, key=scores.__getitem__) for group in groups]
        by_prompt = figures(size, chosen, prompts, scores, golds, before, recipe.seed)
        found.append({key.replace("gold", judged): value for key, value in by_prompt.items()})
    return found


def shared_out(
    score: Callable[[Sequence[Completion]], Sequence[float]], completions: Sequence[Completion]
) -> list[float]:
    """Scores of completions that every rank holds, of which each rank has scored its share."""
    parts = gather_objects(list(score(completions[rank() :: world_size()])))
    return [parts[i % len(parts)][i // len(parts)] for i in range(len(completions))]


def figures(
    size: int,
    chosen: Sequence[int],
    prompts: Sequence[Prompt],
    scores: Sequence[float],
    golds: Sequence[float],
    before: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    """Means over prompts, each of which has the same number of chosen responses, one behind the other."""
    each = len(chosen) // len(prompts)
    by_prompt = [chosen[i * each : (i + 1) * each] for i in range(len(prompts))]
    gold = [mean([golds[row] for row in rows]) for rows in by_prompt]
    won = [mean(wins([golds[row] for row in rows], [before[i]] * each)) for i, rows in enumerate(by_prompt)]
    return {
        "n": size,
        "kl": math.log(size) - (size - 1) / size,
        "score": mean([scores[row] for row in chosen]),
        "gold": mean(gold),
        "gold_ci": bootstrap_interval(gold, seed, groups=prompts),
        "win_rate": mean(won),
        "win_rate_ci": bootstrap_interval(won, seed, groups=prompts),
    }
