"""Evaluation: the aligned policy against the SFT model on held-out prompts, with the same noise for both.

Judged by the gold scorer that no other stage sees, or by the reward model where the recipe names none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from data.scorers import load_scorer
from reward_models.rules import FunctionReward
from rlhf.analysis.statistics import bootstrap_interval, mean, wins
from rlhf.beacons import EVALUATE, enter
from rlhf.config import Recipe
from rlhf.engine.options import require_ddp
from rlhf.models import context_at, load_policy
from rlhf.ppo.experience import Actors
from rlhf.store.samples import conversations
from rlhf.tokenization import Tokenization, load_tokenization
from rlhf.types import Completion, Prompt
from stages.benchmarks import check_benchmarks, run_benchmarks
from stages.best_of import best_of
from stages.command import run_stage
from stages.context import StageContext
from stages.frozen import freeze
from stages.prompts import fitting_prompts
from stages.rewards import load_reward, weighted
from stages.rollout import respond
from stages.sampling import native_generator

SHOWN = 6  # pairs of responses printed to people


def main(context: StageContext) -> None:
    """Sample from both policies, score, compare; hand on the figures and the responses side by side."""
    recipe, config = context.recipe, context.recipe.evaluate
    require_ddp("evaluate", recipe.parallelism_of("evaluate").strategy)
    tokenization = load_tokenization(context.inputs["sft"].model, recipe.model)
    tokenization.require(context.inputs["ppo"].manifest["contract"], "the PPO policy")
    if config.lm_eval:
        check_benchmarks(context)
    window = context_at(context.inputs["ppo"].model, recipe.model)
    held_out = fitting_prompts(context, tokenization, window).test
    prompts = [held_out[i % len(held_out)] for i in range(config.prompts)]
    enter(EVALUATE)
    with context.progress(2) as progress:
        before, score_before, _ = answers(context, "sft", prompts, tokenization)
        progress.update(1, {"score": mean(score_before)})
        after, score_after, kl = answers(context, "ppo", prompts, tokenization)
        progress.update(2, {"score": mean(score_after)})
    judged, judged_before, judged_after = "judged", score_before, score_after
    if config.gold:
        judged, judged_before, judged_after = "gold", *(judge(config.gold, part, recipe) for part in (before, after))
    of_each = {f"{judged}_before": judged_before, f"{judged}_after": judged_after}
    of_each |= {"score_before": score_before, "score_after": score_after, "kl": kl}
    results: dict[str, Any] = {
        "judge": config.gold or "reward model",
        "judge_trained_on": not config.gold or config.gold in trained_on(recipe),
        **compared(judged, judged_before, judged_after, prompts, recipe.seed),
        "kl": mean(kl),
        "score_before": mean(score_before),
        "score_after": mean(score_after),
        "length_before": mean([len(c.response_tokens) for c in before]),
        "length_after": mean([len(c.response_tokens) for c in after]),
        "finished_before": mean([c.finished for c in before]),
        "finished_after": mean([c.finished for c in after]),
        "prompts": len(set(prompts)),
        "responses": len(prompts),
    }
    if len(set(prompts)) < len(prompts):
        context.say(f"{len(prompts)} responses to {len(set(prompts))} prompts, some twice or more: intervals by prompt")
    if config.second_gold:
        results["second_gold_before"] = mean(judge(config.second_gold, before, recipe))
        results["second_gold_after"] = mean(judge(config.second_gold, after, recipe))
    if config.best_of:
        ask = partial(judge, config.gold, recipe=recipe) if config.gold else None
        results["best_of"] = best_of(context, prompts, tokenization, judged_before, ask)
    if config.lm_eval:
        results["lm_eval"] = run_benchmarks(context, config.lm_eval)
    context.tracker.log(0, {f"evaluate/{k}": v for k, v in results.items() if isinstance(v, float)})
    show(context, before, after, of_each)
    context.finish(results)


def compared(
    name: str, before: Sequence[float], after: Sequence[float], prompts: Sequence[Prompt], seed: int
) -> dict[str, Any]:
    """Means, gain and win rate of the judge's scores, `name` before each; intervals over prompts, each one unit."""
    outcomes, gains = wins(after, before), [a - b for a, b in zip(after, before, strict=True)]
    return {
        f"{name}_before": mean(before),
        f"{name}_after": mean(after),
        f"{name}_gain_ci": bootstrap_interval(gains, seed, groups=prompts),
        "win_rate": mean(outcomes),
        "win_rate_ci": bootstrap_interval(outcomes, seed, groups=prompts),
    }


def trained_on(recipe: Recipe) -> list[str | None]:
    """The rewards that PPO was trained on, as the recipe names them."""
    return [recipe.reward.use, *(term.use for term in recipe.ppo.rewards)]


def answers(
    context: StageContext, stage: str, prompts: Sequence[Prompt], tokenization: Tokenization
) -> tuple[list[Completion], list[float], list[float]]:
    """Responses of a stage's policy, their reward scores, and the KL to the SFT model."""
    recipe = context.recipe
    policy = freeze(load_policy(context.inputs[stage].model, tokenization, recipe.model), recipe)
    # The policy is its own reference before training: a KL of 0, at the price of one model instead of two.
    start = context.inputs["sft"].model
    reference = policy if stage == "sft" else freeze(load_policy(start, tokenization, recipe.model), recipe)
    reward = weighted(load_reward(context.inputs["reward"], tokenization, recipe), tokenization, recipe)
    generator = native_generator(policy, tokenization, recipe)
    actors = Actors(policy, reference, None, generator, reward, tokenization)
    found = respond(actors, prompts, recipe.ppo, recipe.seed + 1)
    return [answer.completion for answer in found], [answer.score for answer in found], [answer.kl for answer in found]


def judge(scorer: str, completions: Sequence[Completion], recipe: Recipe) -> list[float]:
    """A scorer's figures for completions. Raises RewardError where it gives something else."""
    found: list[float] = FunctionReward(scorer, load_scorer(scorer, recipe.data.directory))(completions).tolist()
    return found


def show(
    context: StageContext,
    before: Sequence[Completion],
    after: Sequence[Completion],
    figures: Mapping[str, Sequence[float]],
) -> None:
    """Both responses to each prompt with their figures: all as a table, the first ones to people.

    figures: of each prompt, the judge's before and after first.
    """
    columns: dict[str, Sequence[object]] = {
        "prompt": [c.prompt.text for c in before],
        "before": [c.response for c in before],
        "after": [c.response for c in after],
        **figures,
        "before_finished": [c.finished for c in before],
        "after_finished": [c.finished for c in after],
        **conversations([c.prompt for c in before]),
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    context.tracker.table(0, "side-by-side", rows)
    by_judge, by_judge_after = list(figures)[:2]
    lines = [f"responses to {min(SHOWN, len(rows))} prompts, and the judge's scores"]
    for row in rows[:SHOWN]:
        lines.append(f"  {row['prompt']!r}")
        lines.append(f"    before {row[by_judge]:.2f}  {row['before']!r}")
        lines.append(f"    after  {row[by_judge_after]:.2f}  {row['after']!r}")
    context.say("\n".join(lines))


if __name__ == "__main__":
    run_stage("evaluate", main)
