"""The reward of a run: the model that its reward stage trained, or what the recipe names in its place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from torch import nn

from data.scorers import load_scorer
from reward_models.client import HttpReward
from reward_models.encoders import PairClassifier
from reward_models.rules import FunctionReward
from reward_models.scoring import RewardModel
from rlhf.config import Recipe
from rlhf.heads import head_of
from rlhf.models import context_of, load_own_reward_model, load_reward_model
from rlhf.ppo.rewards import WeightedRewards
from rlhf.pretrained import local_model
from rlhf.references import kind_of
from rlhf.sharding import Sharding
from rlhf.store.artifact import Artifact
from rlhf.tokenization import Tokenization, load_tokenization
from rlhf.types import Reward
from stages.frozen import freeze
from stages.origins import model_place

AnyReward: TypeAlias = RewardModel | PairClassifier | FunctionReward | HttpReward


def load_reward(
    artifact: Artifact, tokenization: Tokenization, recipe: Recipe, sharding: Sharding | None = None
) -> AnyReward:
    """The reward that an artifact of the reward stage stands for, its scores normalised as the recipe says.

    tokenization: the policy's. A reward model with another one is fed text instead of the policy's tokens.
    """
    used = artifact.manifest.get("use")
    if used is None:
        reward: AnyReward = trained_model(artifact, tokenization, recipe, sharding)
    elif kind_of(used) == "model":
        reward = reward_model(artifact.model, tokenization, recipe, sharding)
    else:
        reward = named_reward(used, tokenization, recipe, sharding)
    if recipe.ppo.normalize_scores != "recorded":
        return reward
    deviation = artifact.results["score_deviation"] or 1.0  # 0: all scores equal, nothing to scale
    return replace(reward, mean=artifact.results["score_mean"], deviation=deviation)


def named_reward(name: str, tokenization: Tokenization, recipe: Recipe, sharding: Sharding | None = None) -> AnyReward:
    """A reward by its name in a recipe, with raw scores: a model, the address of a server, package.module:function."""
    kind = kind_of(name)
    if kind == "function":
        return FunctionReward(name, load_scorer(name, recipe.data.directory))
    if kind == "server":
        return HttpReward(name, recipe.reward.server)
    place = local_model(model_place(name, recipe.data), recipe.model)
    return reward_model(place, tokenization, recipe, sharding)


def weighted(
    reward: AnyReward,
    tokenization: Tokenization,
    recipe: Recipe,
    sharding: Sharding | None = None,
    strict: bool = True,
) -> Reward:
    """The reward stage's reward with those that `ppo.rewards` adds, or alone where it is all there is.

    strict: False, in PPO, lets through what functions and servers give that is not finite, as models' scores go
    through, and has the first asked as `ppo.overlap_scoring` says.
    """
    config = recipe.ppo
    rewards, weights = {"reward": reward}, {"reward": config.reward_weight}
    for i, term in enumerate(config.rewards, start=1):
        name = f"{i}-{short_name(term.use)}"
        rewards[name], weights[name] = named_reward(term.use, tokenization, recipe, sharding), term.weight
    if not strict:
        # Whether a score depends on who shares its request is examined of the reward stage's reward alone.
        rewards = {name: lenient(each) for name, each in rewards.items()}
        rewards["reward"] = early(rewards["reward"], config.overlap_scoring)
    alone = not config.rewards and config.reward_weight == 1.0
    return rewards["reward"] if alone else WeightedRewards(rewards, weights)


def lenient(reward: AnyReward) -> AnyReward:
    """A reward that hands on what its function or server gives, finite or not."""
    return replace(reward, strict=False) if isinstance(reward, FunctionReward | HttpReward) else reward


def early(reward: AnyReward, overlap: str) -> AnyReward:
    """A reward that is asked while responses are still sampled, where `ppo.overlap_scoring` says so."""
    wanted = {"servers": HttpReward, "all": (HttpReward, FunctionReward), "off": ()}[overlap]
    return replace(reward, early=True) if isinstance(reward, wanted) else reward  # type: ignore[arg-type]


def short_name(use: str) -> str:
    """What stands for a reward's name in the name of a metric."""
    return re.sub(r"[^\w.-]+", "-", use.rstrip("/").rpartition("/")[2].rpartition(":")[2])


def trained_model(
    artifact: Artifact, tokenization: Tokenization, recipe: Recipe, sharding: Sharding | None = None
) -> RewardModel:
    """The frozen model of a reward stage of ours."""
    by_text = bool(tokenization.differing(artifact.manifest["contract"]))
    own = load_tokenization(artifact.model, recipe.model) if by_text else tokenization
    own.require(artifact.manifest["contract"], f"the tokenizer in {artifact.model}")
    model = freeze(load_reward_model(artifact.model, own, recipe.model), recipe, sharding, scores=True)
    return RewardModel(model, own, recipe.ppo.micro_batch_tokens, by_text=by_text)


def reward_model(
    path: Path, tokenization: Tokenization, recipe: Recipe, sharding: Sharding | None = None
) -> RewardModel | PairClassifier:
    """Somebody's reward model: given the policy's tokens where it has the same tokenizer contract, else text."""
    model, budget = load_own_reward_model(path, recipe.model), recipe.ppo.micro_batch_tokens
    if head_of(model) is None:  # small, and whole on every process
        return pair_classifier(freeze(model, recipe), path, recipe)
    model = freeze(model, recipe, sharding, scores=True)
    own = load_tokenization(path, recipe.model, frozen=True)
    # Which id fills a row up says nothing of what two models read.
    by_text = bool(set(tokenization.differing(own.contract)) - {"pad_id"})
    return RewardModel(model, own, budget, by_text=by_text)


def pair_classifier(model: nn.Module, path: Path, recipe: Recipe) -> PairClassifier:
    """A BERT-like reward model with its own tokenizer."""
    from transformers import AutoTokenizer

    code = recipe.model.trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=code)
    context = min(context_of(model), tokenizer.model_max_length)
    return PairClassifier(model, tokenizer, context, recipe.ppo.micro_batch_tokens)
