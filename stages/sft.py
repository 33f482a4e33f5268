"""Supervised fine-tuning: the policy imitates demonstrations.

The loss counts completions (assistant turns) and their stop token alone. TRL's SFTTrainer trains; tokenisation is ours,
the same that sampling and scoring use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl.trainer.sft_config import SFTConfig

from rlhf.analysis.doubts import doubt_of_sft
from rlhf.errors import ConfigError
from rlhf.models import add_lora, context_of, load_policy, new_policy
from rlhf.pretrained import local_model, vocabulary_at
from rlhf.tokenization import Tokenization, load_tokenization, train_tokenization
from rlhf.types import Demonstration
from stages.adoption import adopt_policy, say_format, warn_of_stops
from stages.command import run_stage
from stages.context import StageContext
from stages.examples import demonstrations
from stages.origins import first_model
from stages.prompts import check_prompts_early
from stages.rows import IDS, Keeping, Rows, keeping, lengths, write_rows
from stages.supervised import IGNORED, SupervisedTrainer
from stages.trainer import Report, train

FIGURES = {
    "loss": "loss/sft",
    "grad_norm": "sft/grad_norm",
    "learning_rate": "sft/learning_rate",
    "eval_loss": "eval/loss",
}


def main(context: StageContext) -> None:
    """Train on demonstrations; hand on the policy and its held-out loss."""
    recipe, config = context.recipe, context.recipe.sft
    if config.use:
        adopt_policy(context)
        return
    examples = demonstrations(context)
    start = first_model(recipe)
    new_tokens: Sequence[int] = ()
    if start is None:
        texts = (f"{d.prompt.text}\n{d.completion}" for d in examples.train)
        tokenization = train_tokenization(texts, recipe.model.init.vocab_size, recipe.model.init.context)
        model = new_policy(recipe.model.init, tokenization, recipe.model)
    else:
        path = local_model(start, recipe.model)
        tokenization = load_tokenization(path, recipe.model, recipe.model.added_tokens)
        say_format(context, tokenization)
        warn_of_stops(context, tokenization, path)
        model = load_policy(path, tokenization, recipe.model, quantized=True)
        new_tokens = range(vocabulary_at(path, recipe.model), len(tokenization.tokenizer))
    parameters = sum(p.numel() for p in model.parameters())
    context.say(f"{parameters:,} parameters, {len(examples.train):,} demonstrations, {len(examples.test):,} held out")
    check_prompts_early(context, tokenization, context_of(model))
    max_length = config.max_length or context_of(model)
    training = encode(examples.train, tokenization, keeping(context, max_length, "training")).dataset
    held_out = encode(examples.test, tokenization, keeping(context, max_length, "held-out")).dataset
    policy = add_lora(model, recipe.model.lora, "policy", new_tokens) if recipe.model.lora else model

    def make_trainer(arguments: dict[str, Any], report: Report) -> SupervisedTrainer:
        if config.packing:
            arguments |= packed(arguments, training, max_length)
        return SupervisedTrainer(
            model=policy,
            args=SFTConfig(**arguments, packing=config.packing, eval_packing=False),
            train_dataset=training,
            eval_dataset=held_out,
            processing_class=tokenization.tokenizer,
            callbacks=[report],
        )

    trained = train(context, make_trainer, config, FIGURES)
    trainer = trained.trainer
    eval_loss = -trainer.score if trainer.score is not None else float(trainer.evaluate()["eval_loss"])
    context.say(f"held-out loss {eval_loss:.4f} nats per token")
    results = {"eval_loss": eval_loss, "uniform_loss": math.log(len(tokenization.tokenizer)), "parameters": parameters}
    results["steps"] = trainer.state.global_step
    if doubt := doubt_of_sft(results):
        context.warn(doubt)
    context.finish(results, trained.to_hand_on(), tokenization, engine={"policy": trained.engine})


def encode(demonstrations: Sequence[Demonstration], tokenization: Tokenization, keeping: Keeping) -> Rows:
    """Columns input_ids and labels; the labels are the completion's ids and its stop token, all else is ignored."""

    def row(demonstration: Demonstration) -> dict[str, list[int]]:
        tokens, learned = tokenization.demonstration(demonstration)
        labels = [token if use else IGNORED for token, use in zip(tokens, learned, strict=True)]
        return {"input_ids": tokens, "labels": labels}

    return write_rows(demonstrations, row, {"input_ids": IDS, "labels": IDS}, keeping)


def packed(arguments: dict[str, Any], training: Dataset, max_length: int) -> dict[str, Any]:
    """Options under which packed rows hold as many examples a step as batch_size says.

    A micro-batch of n examples becomes one row of n mean lengths, or several rows where that exceeds max_length.
    Raises ConfigError where the longest example makes a row hold far more than that.
    """
    tokens_each = lengths(training, "input_ids")
    examples, longest = arguments["per_device_train_batch_size"], int(tokens_each.max())
    tokens = examples * int(tokens_each.sum()) / len(tokens_each)
    row = min(max_length, max(longest, math.ceil(tokens)))
    rows = max(1, round(tokens / row))
    if not 0.8 < rows * row / tokens < 1.25:
        raise ConfigError(
            f"sft.packing=true with {examples} examples a forward cannot keep sft.batch_size: the longest example has "
            f"{longest} tokens, the mean {tokens / examples:.0f}; raise sft.micro_batch_size or set packing=false"
        )
    return {"per_device_train_batch_size": rows, "max_length": row}


if __name__ == "__main__":
    run_stage("sft", main)
