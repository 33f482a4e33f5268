"""Reward model: a score whose differences predict which of two responses people prefer (Bradley & Terry 1952).

Starts from the SFT model. Ties count as even odds, votes by their weight. On-policy comparisons are sampled here, from
the SFT model, and voted on by the recipe's labeller.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from data import sources
from data.splits import Split, is_test
from reward_models.pairs import encode_comparison
from reward_models.scoring import RewardModel, judge_held_out
from reward_models.trainer import BradleyTerryTrainer, PreferenceCollator, RewardConfig
from rlhf.analysis.statistics import wilson_interval
from rlhf.config import SourceConfig
from rlhf.distributed import gather_objects, rank, world_size
from rlhf.errors import DataError
from rlhf.models import add_lora, context_of, load_policy, load_reward_model
from rlhf.ppo.experience import complete
from rlhf.randomness import seed_everything
from rlhf.tokenization import Tokenization, load_tokenization
from rlhf.types import Comparison, Completion
from stages.cast import check_lengths, freeze, native_generator
from stages.command import run_stage
from stages.context import StageContext
from stages.trainer import Checkpointed, Report, train

FIGURES = {
    "loss": "loss/reward",
    "accuracy": "reward/train_accuracy",
    "margin": "reward/train_margin",
    "grad_norm": "reward/grad_norm",
    "learning_rate": "reward/learning_rate",
    "eval_loss": "eval/loss",
}
SCORING_TOKENS = 16_384  # padded tokens per forward when held-out votes are judged


class RewardTrainer(Checkpointed, BradleyTerryTrainer):
    """The Bradley-Terry trainer with our checkpoints."""


def main(context: StageContext) -> None:
    """Train on comparisons; hand on the reward model and its held-out accuracy."""
    recipe, config = context.recipe, context.recipe.reward
    start = context.inputs["sft"].model
    tokenization = load_tokenization(start, recipe.model)
    examples, bayes_accuracy = comparisons(context, tokenization)
    seed_everything(recipe.seed)  # the head's weights do not depend on what was sampled before
    base = load_reward_model(start, tokenization, recipe.model)
    context.say(f"{len(examples.train):,} comparisons, {len(examples.test):,} held out")
    max_length = config.max_length or context_of(base)
    training = encode(examples.train, tokenization, max_length)
    held_out_pairs = encode(examples.test, tokenization, max_length)
    model = add_lora(base, recipe.model.lora, "reward") if recipe.model.lora else base

    def make_trainer(arguments: dict[str, Any], report: Report) -> RewardTrainer:
        return RewardTrainer(
            label_smoothing=config.label_smoothing,
            center=config.center,
            model=model,
            args=RewardConfig(**arguments),
            data_collator=PreferenceCollator(tokenization.pad_id),
            train_dataset=training,
            eval_dataset=held_out_pairs,
            processing_class=tokenization.tokenizer,
            callbacks=[report],
        )

    trainer, engine = train(context, make_trainer, config, FIGURES)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    held_out = judge_held_out(RewardModel(trained.eval(), tokenization, SCORING_TOKENS), examples.test)
    interval = wilson_interval(held_out.correct, held_out.votes)
    results = {
        "accuracy": held_out.accuracy,
        "accuracy_ci": list(interval),
        "bayes_accuracy": bayes_accuracy,
        "votes": held_out.votes,
        "log_loss": held_out.log_loss,
        "ece": held_out.calibration_error,
        "margin": held_out.margin,
        "score_mean": held_out.score_mean,
        "score_deviation": held_out.score_deviation,
        "steps": trainer.state.global_step,
    }
    context.tracker.log(trainer.state.global_step, {f"reward/{k}": results[k] for k in ("accuracy", "margin", "ece")})
    context.say(f"held-out accuracy {held_out.accuracy:.3f} (95 % interval {interval[0]:.3f} to {interval[1]:.3f})")
    if bayes_accuracy:
        context.say(f"{held_out.accuracy / bayes_accuracy:.3f} of the Bayes accuracy {bayes_accuracy:.3f}")
    context.finish(results, trained, tokenization, engine={"reward": engine})


def comparisons(context: StageContext, tokenization: Tokenization) -> tuple[Split[Comparison], float | None]:
    """The recipe's comparisons, those that are made on policy among them."""
    recipe = context.recipe
    split, bayes_accuracy = sources.comparisons(recipe.data, recipe.seed)
    for source in recipe.data.comparisons:
        if source.path == sources.ON_POLICY:
            pairs = sample_pairs(context, source, tokenization)
            held_out = [pair for pair in pairs if is_test(pair[0].prompt, recipe.data.test_fraction)]
            training = [pair for pair in pairs if not is_test(pair[0].prompt, recipe.data.test_fraction)]
            votes = sources.vote(source, held_out, recipe.data, recipe.seed)
            split.test.extend(votes.records)
            split.train.extend(sources.vote(source, training, recipe.data, recipe.seed).records)
            bayes_accuracy = votes.bayes_accuracy if len(recipe.data.comparisons) == 1 else None
    if not split.train or not split.test:
        raise DataError("data.comparisons: no example in the train or test part; give more or change test_fraction")
    return split, bayes_accuracy


def sample_pairs(
    context: StageContext, source: SourceConfig, tokenization: Tokenization
) -> list[tuple[Completion, Completion]]:
    """Two responses of the SFT model to each of `source.count` prompts, sampled by all ranks together."""
    recipe = context.recipe
    prompts = sources.prompts(recipe.data)
    every = prompts.train + prompts.test
    random.Random(f"{recipe.seed}/on-policy").shuffle(every)
    wanted = source.count or len(every)
    chosen = [every[i % len(every)] for i in range(wanted)]
    context.say(f"sampling {2 * wanted:,} responses of the SFT model for {source.labeller} to vote on")
    policy = freeze(load_policy(context.inputs["sft"].model, tokenization, recipe.model), recipe)
    check_lengths(prompts, tokenization, context_of(policy), recipe.ppo)
    generator = native_generator(policy, tokenization, recipe)
    rows = range(rank(), 2 * wanted, world_size())
    asked = [chosen[row % wanted] for row in rows]
    tokens = [tokenization.prompt(prompt) for prompt in asked]
    sampled = generator.sample(tokens, rows, seed=recipe.seed, step=0)
    # Every rank must see the very same votes, so each takes over what the others sampled.
    gathered = gather_objects(list(zip(rows, complete(asked, tokens, tokenization, sampled), strict=True)))
    found = dict(row for part in gathered for row in part)
    return [(found[row], found[wanted + row]) for row in range(wanted)]


def encode(examples: Sequence[Comparison], tokenization: Tokenization, max_length: int) -> Dataset:
    """The trainer's columns; a pair over the length is an error, never dropped."""
    rows = [encode_comparison(example, tokenization) for example in examples]
    for number, row in enumerate(rows):
        longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        if longest > max_length:
            raise DataError(
                f"comparison {number} ({examples[number].prompt.text[:40]!r}...) has {longest} tokens, more than "
                f"{max_length}; shorten it or raise reward.max_length"
            )
    return Dataset.from_list(rows)


if __name__ == "__main__":
    run_stage("reward", main)
