"""SFT and reward training by our own engine, for images that have no TRL: plain, padded batches, no packing.

The artifacts are those of the stages, so PPO and evaluation take them up; what a stage does besides (packing,
checkpoints, held-out figures while it trains) is not here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from reward_models.judging import judge_held_out
from reward_models.pairs import encode_comparison
from reward_models.scoring import RewardModel
from rlhf.batching import pad
from rlhf.config import StageConfig
from rlhf.distributed import device
from rlhf.engine.ddp import DdpEngine
from rlhf.engine.optimizer import OptimizerOptions
from rlhf.logprobs import gather_logprobs
from rlhf.losses import bradley_terry_loss
from rlhf.models import add_lora, load_policy, load_reward_model
from rlhf.tokenization import load_tokenization
from rlhf.types import Comparison
from stages import examples
from stages.context import StageContext
from stages.origins import first_model


def engine_of(context: StageContext, model: nn.Module, config: StageConfig, steps: int) -> DdpEngine:
    """A model that learns, with its adapters where the recipe wants them."""
    lora, kind = context.recipe.model.lora, "policy" if context.stage == "sft" else "reward"
    options = OptimizerOptions(
        learning_rate=config.learning_rate,
        learning_rate_end=0.0,
        warmup_steps=round(config.warmup_fraction * steps),
        total_steps=steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bfloat16=context.recipe.model.dtype == "bfloat16",
    )
    return DdpEngine((add_lora(model, lora, kind) if lora else model).to(device()), options)


def batches(count: int, config: StageConfig, seed: int) -> Iterator[list[int]]:
    """Indices of each step's examples; what does not fill a batch is left out."""
    for epoch in range(int(config.epochs)):
        order = list(range(count))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        yield from (
            order[i : i + config.batch_size] for i in range(0, count - config.batch_size + 1, config.batch_size)
        )


def supervised(context: StageContext) -> None:
    """The policy, trained on demonstrations."""
    recipe, config = context.recipe, context.recipe.sft
    start = first_model(recipe) or ""
    tokenization = load_tokenization(start, recipe.model)
    split = examples.demonstrations(context)
    training, held_out = ([tokenization.demonstration(d) for d in part] for part in (split.train, split.test))
    work = list(batches(len(training), config, recipe.seed))
    engine = engine_of(context, load_policy(start, tokenization, recipe.model), config, len(work))

    def loss_of(rows: Sequence[tuple[list[int], list[bool]]]) -> Tensor:
        tokens, mask = pad([row[0] for row in rows], tokenization.pad_id, "right")
        learned = pad([[int(use) for use in row[1]] for row in rows], 0, "right")[0].bool()[:, 1:].to(device())
        logits = engine(input_ids=tokens.to(device()), attention_mask=mask.to(device()), use_cache=False).logits
        logprobs = gather_logprobs(logits[:, :-1], tokens[:, 1:].to(device()))
        return -logprobs.masked_fill(~learned, 0.0).sum() / learned.sum()

    for rows in work:
        with engine.micro_batch(last=True):
            engine.backward(loss_of([training[i] for i in rows]))
        engine.step()
    with torch.no_grad():
        loss = float(loss_of(held_out))
    context.say(f"held-out loss {loss:.4f} nats per token")
    results = {"eval_loss": loss, "steps": len(work)}
    context.finish(results, engine.module, tokenization, engine={"policy": engine.name})


def reward(context: StageContext) -> None:
    """The reward model, trained on comparisons."""
    recipe, config = context.recipe, context.recipe.reward
    start = context.inputs["sft"].model
    tokenization = load_tokenization(start, recipe.model)
    split, bayes_accuracy = examples.comparisons(context, {})
    training = list(split.train)
    work = list(batches(len(training), config, recipe.seed))
    engine = engine_of(context, load_reward_model(start, tokenization, recipe.model), config, len(work))

    def loss_of(votes: Sequence[Comparison]) -> Tensor:
        encoded = [encode_comparison(vote, tokenization) for vote in votes]
        rows = [pair["chosen_ids"] for pair in encoded] + [pair["rejected_ids"] for pair in encoded]
        tokens, mask = (part.to(device()) for part in pad(rows, tokenization.pad_id, "right"))
        scores = engine(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits.squeeze(-1).float()
        chosen, rejected = scores.chunk(2)
        target = torch.tensor([pair["target"] for pair in encoded], device=device())
        losses = bradley_terry_loss(chosen, rejected, target=target)
        return losses.mean() + config.center * (chosen + rejected).square().mean()

    for rows in work:
        with engine.micro_batch(last=True):
            engine.backward(loss_of([training[i] for i in rows]))
        engine.step()
    held_out = judge_held_out(RewardModel(engine.module.eval(), tokenization, 16_384), list(split.test))
    context.say(f"held-out accuracy {held_out.accuracy:.3f}")
    results = held_out.figures() | {"bayes_accuracy": bayes_accuracy, "steps": len(work)}
    context.finish(results, engine.module, tokenization, engine={"reward": engine.name})
