"""Reward model: a score whose differences predict which of two responses people prefer (Bradley & Terry 1952).

Starts from the SFT model, or goes on from a reward model (`reward.start`). Ties count as even odds, votes by their
weight. On-policy comparisons are sampled here, from the SFT model, and voted on by the recipe's labeller.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data import sources
from data.mapped import Selection
from data.splits import Split, is_test
from reward_models.judging import judge_held_out
from reward_models.pairs import encode_comparison
from reward_models.scoring import RewardModel
from reward_models.trainer import BradleyTerryTrainer, RewardConfig
from rlhf.analysis.doubts import doubt_of_reward
from rlhf.config import DataConfig, SourceConfig
from rlhf.distributed import from_main
from rlhf.errors import DataError
from rlhf.models import add_lora, context_of, load_policy, load_reward_model
from rlhf.pretrained import local_model
from rlhf.randomness import seed_everything
from rlhf.tokenization import Tokenization, load_tokenization
from rlhf.types import Comparison, Completion
from stages import examples, gate
from stages.adoption import adopt_reward
from stages.command import run_stage
from stages.context import StageContext
from stages.frozen import freeze
from stages.origins import start_of_reward
from stages.prompts import fitting_prompts
from stages.rows import IDS, Keeping, Rows, keeping, write_rows
from stages.sampling import sample
from stages.token_lengths import tokens_by
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
SHOWN = 8  # sources, or kinds of prompts, whose accuracy is said


class RewardTrainer(Checkpointed, BradleyTerryTrainer):
    """The Bradley-Terry trainer with our checkpoints."""


def main(context: StageContext) -> None:
    """Train on comparisons; hand on the reward model and its held-out accuracy."""
    recipe, config = context.recipe, context.recipe.reward
    if config.use:
        adopt_reward(context)
        return
    start = context.inputs["sft"].model
    tokenization = load_tokenization(start, recipe.model)
    earlier = earlier_model(context, tokenization)
    votes, bayes_accuracy = comparisons(context, tokenization)
    seed_everything(recipe.seed)  # the head's weights do not depend on what was sampled before
    base = load_reward_model(earlier or start, tokenization, recipe.model, quantized=True)
    context.say(f"{len(votes.train):,} comparisons, {len(votes.test):,} held out")
    max_length = config.max_length or context_of(base)
    training = encode(votes.train, tokenization, keeping(context, max_length, "training"))
    held_out_pairs = encode(votes.test, tokenization, keeping(context, max_length, "held-out"))
    model = add_lora(base, recipe.model.lora, "reward") if recipe.model.lora else base

    def make_trainer(arguments: dict[str, Any], report: Report) -> RewardTrainer:
        return RewardTrainer(
            pad_id=tokenization.pad_id,
            label_smoothing=config.label_smoothing,
            center=config.center,
            model=model,
            args=RewardConfig(**arguments),
            train_dataset=training.dataset,
            eval_dataset=held_out_pairs.dataset,
            processing_class=tokenization.tokenizer,
            callbacks=[report],
        )

    trained = train(context, make_trainer, config, FIGURES)
    steps = trained.trainer.state.global_step
    judged = Selection([votes.test], held_out_pairs.kept)
    with trained.to_score() as scorer:
        held_out = judge_held_out(RewardModel(scorer.eval(), tokenization, SCORING_TOKENS), judged)
    results = held_out.figures() | {"bayes_accuracy": bayes_accuracy, "steps": steps}
    for name, labels in parts_of(judged, votes.test, recipe.data).items():
        results[name] = held_out.by(labels)
        context.say(f"{name.replace('_', ' ')}: {told_by(results[name])}")
    interval = results["accuracy_ci"]
    context.tracker.log(steps, {f"reward/{k}": results[k] for k in ("accuracy", "margin", "ece")})
    context.say(f"held-out accuracy {held_out.accuracy:.3f} (95 % interval {interval[0]:.3f} to {interval[1]:.3f})")
    if bayes_accuracy:
        context.say(f"{held_out.accuracy / bayes_accuracy:.3f} of the Bayes accuracy {bayes_accuracy:.3f}")
    if doubt := doubt_of_reward(results):
        context.warn(doubt)
    check, engine = gate.headline(context.output), {"reward": trained.engine}
    context.finish(results, trained.to_hand_on(), tokenization, engine=engine, check=check)


def earlier_model(context: StageContext, tokenization: Tokenization) -> Path | None:
    """The directory of the reward model to go on from, if the recipe names one. ContractError for another tokenizer."""
    recipe, place = context.recipe, start_of_reward(context.recipe)
    if place is None:
        return None
    found = local_model(place, recipe.model)
    tokenization.require(load_tokenization(found, recipe.model).contract, f"reward.start={recipe.reward.start}")
    context.say(f"goes on from the reward model in {place}")
    return found


def parts_of(
    judged: Selection[Comparison], test: Sequence[Comparison], data: DataConfig
) -> dict[str, list[str | None]]:
    """By what the held-out votes are told apart: prompts' kinds where votes have them, sources where there are several.

    judged: those of `test` that were kept.
    """
    parts: dict[str, list[str | None]] = {}
    kinds = [vote.kind for vote in judged]
    if any(kind is not None for kind in kinds):
        parts["accuracy_by_kind"] = kinds
    if len(data.comparisons) > 1 and isinstance(test, Selection):
        paths = [source.path for source in data.comparisons]
        names = [path if paths.count(path) == 1 else f"{path} ({i + 1})" for i, path in enumerate(paths)]
        origins = test.origins[judged.indices]
        parts["accuracy_by_source"] = [names[int(origin)] for origin in origins]
    return parts


def told_by(shares: Mapping[str, Any]) -> str:
    """Accuracies for people, the first few of them."""
    shown = [f"{name} {share['accuracy']:.3f} of {share['votes']:,}" for name, share in [*shares.items()][:SHOWN]]
    return ", ".join(shown) + (f", and {len(shares) - SHOWN} more in the manifest" if len(shares) > SHOWN else "")


def comparisons(context: StageContext, tokenization: Tokenization) -> tuple[Split[Comparison], float | None]:
    """The recipe's comparisons, those that are made on policy among them."""
    recipe = context.recipe
    sampled: dict[int, list[Comparison]] = {}
    on_policy_accuracy = None
    for number, source in enumerate(recipe.data.comparisons):
        if source.path == sources.ON_POLICY:
            pairs = sample_pairs(context, source, tokenization)
            held_out = [pair for pair in pairs if is_test(pair[0].prompt, recipe.data.test_fraction)]
            training = [pair for pair in pairs if not is_test(pair[0].prompt, recipe.data.test_fraction)]
            votes = sources.vote(source, held_out, recipe.data, recipe.seed)
            sampled[number] = [*sources.vote(source, training, recipe.data, recipe.seed).records, *votes.records]
            on_policy_accuracy = votes.bayes_accuracy if len(recipe.data.comparisons) == 1 else None
    start = context.inputs["sft"]
    tokens, run = tokens_by(tokenization, start.model, recipe), start.directory.parent
    from_main(lambda: gate.pass_through(recipe, run, context.output, sampled, tokens, context.warn))
    split, bayes_accuracy = examples.comparisons(context, sampled)
    if not split.train or not split.test:
        raise DataError("data.comparisons: no example in the train or test part; give more or change test_fraction")
    return split, on_policy_accuracy if sampled else bayes_accuracy


def sample_pairs(
    context: StageContext, source: SourceConfig, tokenization: Tokenization
) -> list[tuple[Completion, Completion]]:
    """Two responses of the SFT model to each of `source.count` prompts, sampled by all ranks together."""
    recipe = context.recipe
    policy = freeze(load_policy(context.inputs["sft"].model, tokenization, recipe.model), recipe)
    prompts = fitting_prompts(context, tokenization, context_of(policy))
    every = Selection([prompts.train, prompts.test], np.arange(len(prompts.train) + len(prompts.test)))
    order = list(range(len(every)))
    random.Random(f"{recipe.seed}/on-policy").shuffle(order)
    wanted = source.count or len(every)
    chosen = [every[order[i % len(every)]] for i in range(wanted)]
    context.say(f"sampling {2 * wanted:,} responses of the SFT model for {source.labeller} to vote on")
    found = sample(policy, tokenization, recipe, [*chosen, *chosen])
    return list(zip(found[:wanted], found[wanted:], strict=True))


def encode(comparisons: Sequence[Comparison], tokenization: Tokenization, keeping: Keeping) -> Rows:
    """The trainer's columns; a pair over the length is an error, or left out and counted, never dropped unsaid."""
    columns = {"chosen_ids": IDS, "rejected_ids": IDS, "target": pa.float64(), "weight": pa.float64()}
    return write_rows(comparisons, lambda pair: encode_comparison(pair, tokenization), columns, keeping)


if __name__ == "__main__":
    run_stage("reward", main)
