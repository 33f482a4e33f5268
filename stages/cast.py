"""The cast of PPO: the models, engines and prompts that its stages set up from the artifacts before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from data import sources
from data.splits import Split
from reward_models.scoring import RewardModel
from rlhf.config import PpoConfig, Recipe
from rlhf.distributed import device, world_size
from rlhf.engine import Engine
from rlhf.engine.ddp import DdpEngine, OptimizerOptions
from rlhf.errors import ConfigError
from rlhf.generation.native import NativeGenerator
from rlhf.kl import AdaptiveController, Controller, FixedController
from rlhf.models import add_lora, context_of, load_policy, load_reward_model, load_value_model
from rlhf.ppo.experience import Actors
from rlhf.randomness import seed_everything
from rlhf.store.artifact import Artifact
from rlhf.tokenization import Tokenization, load_tokenization
from rlhf.types import Prompt
from stages.context import StageContext


class Cast(NamedTuple):
    """Everything that a PPO run trains and uses."""

    actors: Actors
    policy: Engine
    value: Engine
    kl: Controller
    prompts: Split[Prompt]


class PromptOrder:
    """An endless sequence of prompts: pass after pass, each in an order of its own, from the seed alone.

    Position i is the same however often the run was stopped and however many ranks share it.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.prompts = prompts
        self.seed = seed
        self.epoch = -1
        self.order: list[int] = []

    def __getitem__(self, position: int) -> Prompt:
        """The prompt at a position, counted from 0 over all passes."""
        epoch, index = divmod(position, len(self.prompts))
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self.order = torch.randperm(len(self.prompts), generator=generator).tolist()
            self.epoch = epoch
        return self.prompts[self.order[index]]


def prepare(context: StageContext) -> Cast:
    """Load the four models from their artifacts and wrap those that learn."""
    recipe, config = context.recipe, context.recipe.ppo
    if config.prompts_per_step < world_size():
        raise ConfigError(
            f"ppo.prompts_per_step={config.prompts_per_step} leaves some of {world_size()} processes without a prompt; "
            f"use at least prompts_per_step={world_size()}"
        )
    prompts = sources.prompts(recipe.data)
    start = context.inputs["sft"]
    tokenization = load_tokenization(start.model, recipe.model)
    base = load_policy(start.model, tokenization, recipe.model)
    check_lengths(prompts, tokenization, context_of(base), config)
    reference = freeze(load_policy(start.model, tokenization, recipe.model), recipe)
    reward = load_reward(context.inputs["reward"], tokenization, recipe)
    critic = load_value_model(context.inputs["reward"].model, tokenization, recipe.model, reward.mean, reward.deviation)
    if recipe.model.activation_checkpointing:
        for model in (base, critic):
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
            model.enable_input_require_grads()  # type: ignore[operator]  # with adapters nothing else would need one
    seed_everything(recipe.seed)
    lora = recipe.model.lora
    policy = DdpEngine((add_lora(base, lora, "policy") if lora else base).to(device()), _options(recipe, "policy"))
    value = DdpEngine((add_lora(critic, lora, "value") if lora else critic).to(device()), _options(recipe, "value"))
    generator = native_generator(policy.module, tokenization, recipe)
    bfloat16 = recipe.model.dtype == "bfloat16"
    actors = Actors(policy.module, reference, value.module, generator, reward, tokenization, bfloat16)
    kl: Controller = FixedController(config.kl.coef)
    if config.kl.controller == "adaptive" and config.kl.target is not None:
        kl = AdaptiveController(config.kl.coef, config.kl.target, config.kl.horizon)
    context.say(
        f"{len(prompts.train):,} prompts, {len(prompts.test):,} held out; {policy.name}, {world_size()} process(es)"
    )
    return Cast(actors, policy, value, kl, prompts)


def native_generator(policy: nn.Module, tokenization: Tokenization, recipe: Recipe) -> NativeGenerator:
    """A sampler of a policy with the recipe's settings."""
    bfloat16 = recipe.model.dtype == "bfloat16"
    return NativeGenerator(policy, tokenization.stop_id, tokenization.pad_id, recipe.ppo.generation, bfloat16)


def load_reward(artifact: Artifact, tokenization: Tokenization, recipe: Recipe) -> RewardModel:
    """The frozen reward model of an artifact, its scores normalised as the recipe says."""
    tokenization.require(artifact.manifest["contract"], f"the reward model in {artifact.directory}")
    model = freeze(load_reward_model(artifact.model, tokenization, recipe.model), recipe)
    mean, deviation = 0.0, 1.0
    if recipe.ppo.normalize_scores:
        mean = artifact.results["score_mean"]
        deviation = artifact.results["score_deviation"] or 1.0  # 0: all scores equal, nothing to scale
    return RewardModel(model, tokenization, recipe.ppo.micro_batch_tokens, mean, deviation)


def freeze(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A model on this rank's device that only answers, in the dtype of computation."""
    return model.to(device(), getattr(torch, recipe.model.dtype)).eval().requires_grad_(False)


def check_lengths(prompts: Split[Prompt], tokenization: Tokenization, context: int, config: PpoConfig) -> None:
    """Raise ConfigError if the longest prompt and response do not fit into the model's context."""
    longest = max(prompts.train + prompts.test, key=lambda prompt: len(tokenization.prompt(prompt)))
    tokens, room = len(tokenization.prompt(longest)), config.generation.max_new_tokens
    if tokens + room > context:
        raise ConfigError(
            f"ppo.generation.max_new_tokens={room} and the prompt {longest.text[:40]!r}... of {tokens} tokens exceed "
            f"the model's context of {context}; use max_new_tokens={max(1, context - tokens)} or shorter prompts"
        )


def _options(recipe: Recipe, role: str) -> OptimizerOptions:
    config = recipe.ppo
    per_step = config.epochs * config.minibatches
    rate = config.learning_rate
    if role == "value" and config.value_learning_rate is not None:
        rate = config.value_learning_rate
    return OptimizerOptions(
        learning_rate=rate,
        learning_rate_end=config.learning_rate_end,
        warmup_steps=config.warmup_steps * per_step,
        total_steps=config.steps * per_step,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bfloat16=recipe.model.dtype == "bfloat16",
    )
