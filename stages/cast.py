"""The cast of PPO: the models, engines and prompts that its stages set up from the artifacts before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from data.splits import Split
from reward_models.encoders import PairClassifier
from reward_models.scoring import RewardModel
from rlhf.adapters import AdapterOff
from rlhf.config import PpoConfig, Recipe
from rlhf.distributed import counted, world_size
from rlhf.engine import Engine
from rlhf.engine.choice import build, sharding_of
from rlhf.engine.optimizer import OptimizerOptions
from rlhf.errors import ConfigError
from rlhf.generation.native import NativeGenerator
from rlhf.kl import AdaptiveController, Controller, FixedController
from rlhf.models import context_of, is_quantized, load_policy
from rlhf.offload import Offloaded, offloaded_models
from rlhf.ppo.experience import Actors
from rlhf.ppo.rewards import named_rewards
from rlhf.ppo.shaping import RunningScores
from rlhf.randomness import seed_everything
from rlhf.sharding import Sharding
from rlhf.tokenization import load_tokenization
from rlhf.trunk import PolicyWithValueHead
from rlhf.types import Prompt, Reward
from stages.context import StageContext
from stages.critic import learning, load_critic
from stages.frozen import freeze
from stages.preflight import parallelism_fits
from stages.prompts import fitting_prompts
from stages.rewards import load_reward, weighted
from stages.sampling import rollout_generator


class Cast(NamedTuple):
    """Everything that a PPO run trains and uses."""

    actors: Actors
    policy: Engine
    value: Engine | None  # the policy's own where its model has a value head; None where no values are needed
    kl: Controller
    running: RunningScores | None
    prompts: Split[Prompt]
    sharding: Sharding | None = None  # how models are shared out over processes

    @property
    def probe(self) -> list[int]:
        """A text on which models are tried: the first prompt's tokens."""
        return self.actors.tokenization.prompt(self.prompts.train[0])


def doubts(recipe: Recipe, weights: int) -> Iterator[str]:
    """Settings of PPO that can be meant, but seldom are; weights: how many the policy has."""
    config = recipe.ppo
    if weights > 1e8 and not recipe.model.lora and config.learning_rate > 5e-5:
        yield f"ppo.learning_rate={config.learning_rate:g}: is high for {weights:,} weights; 1e-6 to 1e-5 are usual"
    if config.ratio == "sequence" and config.clip > 0.05:
        yield (
            f"ppo.clip={config.clip:g} with ratio=sequence: hardly ever clips a mean over a response; Zheng et al. "
            "2025 use clip=3e-4, clip_high=4e-4"
        )
    if config.has_value and config.value_warmup_steps >= config.steps:
        yield f"ppo.value_warmup_steps={config.value_warmup_steps} of steps={config.steps}: the policy never learns"


class PromptOrder:
    """An endless sequence of prompts: pass after pass, each in an order of its own, from the seed alone.

    Position i is the same however often the run was stopped and however many ranks share it.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.prompts = prompts
        self.seed = seed
        self.epoch = -1
        self.order = torch.empty(0, dtype=torch.int64)

    def __getitem__(self, position: int) -> Prompt:
        """The prompt at a position, counted from 0 over all passes."""
        epoch, index = divmod(position, len(self.prompts))
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self.order = torch.randperm(len(self.prompts), generator=generator)
            self.epoch = epoch
        return self.prompts[int(self.order[index])]

    def asked(self, step: int, rows: Sequence[int], config: PpoConfig) -> list[Prompt]:
        """The prompts of a step, counted from 1, that some rows of its rollout answer."""
        start, group = (step - 1) * config.prompts_per_step, config.responses_per_prompt
        return [self[start + row // group] for row in rows]


def prepare(context: StageContext) -> Cast:
    """Load the models from their artifacts and wrap those that learn."""
    recipe, config = context.recipe, context.recipe.ppo
    parallelism_fits(recipe, "ppo", world_size())
    start = context.inputs["sft"]
    tokenization = load_tokenization(start.model, recipe.model)
    sources = start.model, tokenization, recipe.model
    base = load_policy(*sources, quantized=True)
    prompts = fitting_prompts(context, tokenization, context_of(base))
    parallelism = recipe.parallelism_of("ppo")
    sharding = sharding_of(parallelism)
    if parallelism.strategy != "ddp" and is_quantized(base):
        raise ConfigError(f"model {start.model}: its weights of few bits are not shared out; use strategy=ddp")
    reward = load_reward(context.inputs["reward"], tokenization, recipe, sharding)
    critic = load_critic(reward, context, tokenization) if config.has_critic else None
    seed_everything(recipe.seed)
    moved = parallelism.strategy != "ddp"  # to this process's device by the engine, share by share
    weights = sum(parameter.numel() for parameter in base.parameters())
    model = learning(base, recipe, "policy", moved)
    # Fresh adapters add nothing, and nothing below them learns: without them the policy is the SFT model.
    reference = AdapterOff(model) if recipe.model.lora else freeze(load_policy(*sources), recipe, sharding)
    trunk = PolicyWithValueHead(model) if config.has_value and critic is None else None
    policy = build(trunk or model, optimizer_options(recipe, "policy"), parallelism, sharding)
    value: Engine | None = policy if trunk else None
    if critic is not None:
        critic = learning(critic, recipe, "value", moved)
        value = build(critic, optimizer_options(recipe, "value"), parallelism, sharding)
    generator = rollout_generator(model, tokenization, recipe)
    bfloat16 = recipe.model.dtype == "bfloat16"
    values, scorer = value.module if value else None, weighted(reward, tokenization, recipe, sharding, strict=False)
    lockstep = sharding is not None or config.generation.engine == "vllm"
    away = offloaded(context, reference, scorer)
    actors = Actors(model, reference, values, generator, scorer, tokenization, bfloat16, lockstep, away)
    kl: Controller = FixedController(config.kl.coef)
    if config.kl.controller == "adaptive" and config.kl.target is not None:
        kl = AdaptiveController(config.kl.coef, config.kl.target, config.kl.horizon)
    running = RunningScores() if config.normalize_scores == "running" else None
    for doubt in doubts(recipe, weights):
        context.warn(doubt)
    if isinstance(generator, NativeGenerator) and (reason := generator.without_graphs):
        context.say(f"ppo.generation.cuda_graphs does nothing here: {reason}")
    if config.unused:
        context.say(f"ppo.advantage={config.advantage} does not use {', '.join(config.unused)}")
    context.say(
        f"{len(prompts.train):,} prompts, {len(prompts.test):,} held out; {policy.name}, {counted(world_size())}"
    )
    return Cast(actors, policy, value, kl, running, prompts, sharding)


def offloaded(context: StageContext, reference: nn.Module, reward: Reward) -> dict[str, Offloaded]:
    """What the recipe wants to wait in the CPU's memory, of the models that only answer."""
    wanted = context.recipe.ppo.offload
    models = [each.model for each in named_rewards(reward).values() if isinstance(each, RewardModel | PairClassifier)]
    if "reward" in wanted and not models:
        context.warn("ppo.offload: the reward is no model of this process's, so there is nothing of it to offload")
    of = {"reference": [reference], "reward": models}
    return {role: offloaded_models(of[role]) for role in of if role in wanted}


def optimizer_options(recipe: Recipe, role: str) -> OptimizerOptions:
    """How the policy or the value model learns, as a recipe says."""
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
        offload="optimizer" in config.offload,
    )
