"""A model or a reward of one's own in place of a stage: examined, recorded, and from then on an artifact like ours.

What is complete in itself stays where it is, and the manifest refers to it with its checksums. An adapter is merged,
and a model whose embeddings grew is saved, into the stage's own `model/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from data import sources
from reward_models.judging import judge_pairs
from reward_models.sanity import TOLERANCE, Examination, Sanity
from reward_models.scoring import RewardModel
from rlhf.analysis.doubts import doubt_of_reward
from rlhf.config import Recipe
from rlhf.distributed import from_main, is_main
from rlhf.errors import ArtifactError
from rlhf.models import context_at, context_of, load_policy
from rlhf.pretrained import declared_stops, local_model, vocabulary_at
from rlhf.references import kind_of
from rlhf.store.artifact import referring
from rlhf.store.weights import base_of_adapter
from rlhf.tokenization import Tokenization, load_tokenization
from rlhf.types import Comparison, Completion
from stages import examples
from stages.context import StageContext, StageOptions
from stages.frozen import freeze
from stages.lineage import STAGES, has_votes, is_current, used_by
from stages.origins import first_model, model_place
from stages.prompts import check_prompts_early, fitting_prompts
from stages.rewards import AnyReward, named_reward
from stages.sampling import sample
from stages.signals import Signals
from stages.uses import check_uses

PROBED = 64  # responses of the policy on which a reward is examined
JUDGED = 1000  # held-out votes at most


def adopt_missing(recipe: Recipe, stage: str, options: StageOptions, signals: Signals | None = None) -> None:
    """Take in what a stage's inputs are to be replaced by, unless that was done before; every rank calls."""
    for name in STAGES[stage].inputs:
        if used_by(recipe, name) and not is_current(recipe, options.run, name):
            check_uses(recipe, [name])
            context = StageContext(recipe, name, StageOptions(options.run, options.run / name), signals)
            context.carry_out(importlib.import_module(f"stages.{name}").main)


def adopt_policy(context: StageContext) -> None:
    """Hand on the language model of `sft.use`."""
    recipe = context.recipe
    path = local_model(first_model(recipe) or "", recipe.model)
    tokenization = load_tokenization(path, recipe.model, recipe.model.added_tokens)
    say_format(context, tokenization)
    warn_of_stops(context, tokenization, path)
    check_prompts_early(context, tokenization, context_at(path, recipe.model))
    model, parameters = None, 0
    if is_main():  # one copy: all ranks' would fill the machine's memory
        model = load_policy(path, tokenization, recipe.model)
        require_finite_logits(model, tokenization, path)
        parameters = sum(p.numel() for p in model.parameters())
    context.say(f"using {recipe.sft.use}: {parameters:,} parameters, nothing to train")
    record: dict[str, Any] = {"use": recipe.sft.use, "engine": {}}
    results = {"parameters": parameters}
    new_tokens = len(tokenization.tokenizer) > len(load_tokenization(path, recipe.model, frozen=True).tokenizer)
    grown = len(tokenization.tokenizer) > vocabulary_at(path, recipe.model)
    if base_of_adapter(path) is not None or new_tokens or grown:
        context.finish(results, model, tokenization, **record)
    else:
        context.finish(results, None, tokenization, **record, refers_to=referring(path))


def adopt_reward(context: StageContext) -> None:
    """Examine the reward of `reward.use` on responses of the policy, and hand it on."""
    recipe, name = context.recipe, context.recipe.reward.use or ""
    tokenization = load_tokenization(context.inputs["sft"].model, recipe.model)
    sampled, votes = responses_of_policy(context, tokenization), held_out_votes(context)
    asked: list[AnyReward] = []

    def examine() -> dict[str, Any]:
        asked.append(named_reward(name, tokenization, recipe))
        exact = recipe.model.dtype if kind_of(name) == "model" else "float32"
        seen = Examination(name, TOLERANCE[exact], tokenization.response, recipe.seed)(asked[0], sampled)
        for warning in seen.warnings():
            context.warn(f"reward.use={name}: {warning}")
        return (judged(context, asked[0], votes, tokenization) if votes else {}) | figures(seen)

    context.say(f"using {name}, examined on {len(sampled)} responses of the policy")
    # By one rank: a server is asked once, and what one rank cannot use the others do not take for complete.
    results = from_main(examine) | {"bayes_accuracy": votes.bayes_accuracy if votes else None}
    record: dict[str, Any] = {"use": name, "engine": {}}
    if kind_of(name) != "model":
        context.finish(results, **record)
        return
    path = local_model(model_place(name, recipe.data), recipe.model)
    reward = asked[0] if asked else None
    own = reward.tokenization if isinstance(reward, RewardModel) else None
    if isinstance(reward, RewardModel) and base_of_adapter(path) is not None:
        reward.model.config.pad_token_id = reward.tokenization.pad_id  # type: ignore[union-attr]
        context.finish(results, reward.model, own, **record)
    else:
        context.finish(results, None, own, **record, refers_to=referring(path))


def responses_of_policy(context: StageContext, tokenization: Tokenization) -> list[Completion]:
    """What the policy answers to held-out prompts before any training; the same on every rank."""
    recipe = context.recipe
    policy = freeze(load_policy(context.inputs["sft"].model, tokenization, recipe.model), recipe)
    held_out = fitting_prompts(context, tokenization, context_of(policy)).test
    asked = [held_out[i % len(held_out)] for i in range(PROBED)]
    return sample(policy, tokenization, recipe, asked)


class Votes(NamedTuple):
    """Held-out votes, and the accuracy of a judge who knows the truth, if that is known."""

    comparisons: list[Comparison]
    bayes_accuracy: float | None


def held_out_votes(context: StageContext) -> Votes | None:
    """The votes by which a reward is judged; None where the recipe has none."""
    if not has_votes(context.recipe):
        return None
    split, bayes_accuracy = examples.comparisons(context, sources.EMPTY)
    return Votes([split.test[i] for i in range(min(JUDGED, len(split.test)))], bayes_accuracy)


def judged(context: StageContext, reward: AnyReward, votes: Votes, tokenization: Tokenization) -> dict[str, Any]:
    """How the reward predicts held-out votes: the figures of a reward stage."""
    pairs = [both(vote, tokenization) for vote in votes.comparisons]
    held_out = judge_pairs(reward, pairs, [vote.wanted for vote in votes.comparisons])
    results = held_out.figures()
    low, high = results["accuracy_ci"]
    context.say(f"held-out accuracy {held_out.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})")
    if doubt := doubt_of_reward(results | {"use": context.recipe.reward.use}):
        context.warn(f"reward.use={context.recipe.reward.use}: {doubt}")
    return results


def both(vote: Comparison, tokenization: Tokenization) -> tuple[Completion, Completion]:
    """The chosen and the rejected response as the policy would have given them."""
    tokens = tuple(tokenization.prompt(vote.prompt))

    def completion(text: str, finished: bool) -> Completion:
        return Completion(vote.prompt, text, tokens, tuple(tokenization.response(text, finished)), finished)

    return completion(vote.chosen, vote.chosen_finished), completion(vote.rejected, vote.rejected_finished)


def figures(seen: Sanity) -> dict[str, Any]:
    """What the manifest keeps of an examination; the scores' level and spread normalise them in PPO."""
    spread = float(seen.scores.std()) if len(seen.scores) > 1 else 0.0
    probes = {name: round(share, 4) for name, share in seen.preferred.items()}
    return {"score_mean": float(seen.scores.mean()), "score_deviation": spread, "preferred_to": probes}


def say_format(context: StageContext, tokenization: Tokenization) -> None:
    """Say it where prompts are not rendered as conversations."""
    if not tokenization.chat:
        why = "model.chat_template=none" if context.recipe.model.chat_template == "none" else "no chat template"
        context.say(f"{why}: a prompt is its plain text, turns joined by blank lines, and the response goes on from it")


def warn_of_stops(context: StageContext, tokenization: Tokenization, path: Path) -> None:
    """Say it where a model declares that a response ends elsewhere than at the tokenizer's stop token alone."""
    declared, stop = declared_stops(path, context.recipe.model), tokenization.stop_id
    if set(declared) - {stop}:
        named = [str(token) for token in tokenization.tokenizer.convert_ids_to_tokens([*declared, stop])]
        context.warn(
            f"{path}: its generation_config.json ends responses at eos_token_id={declared} ({' '.join(named[:-1])}), "
            f"here they end at the tokenizer's eos_token {stop} ({named[-1]}) alone; if that is not what ends a turn, "
            "set eos_token in tokenizer_config.json to the token that does"
        )


def require_finite_logits(model: nn.Module, tokenization: Tokenization, path: Path) -> None:
    """Raise ArtifactError where a model answers a text with what is no number."""
    ids: Sequence[int] = tokenization.response("The quick brown fox.")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    if not bool(logits.isfinite().all()):
        raise ArtifactError(f"model {path}: gives logits that are no numbers; its weights are damaged")
