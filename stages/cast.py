"""The cast of PPO: the models, engines and prompts that its stages set up from the artifacts before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from data.splits import Split
from reward_models.scoring import RewardModel
from rlhf.config import Recipe
from rlhf.distributed import device, world_size
from rlhf.engine import Engine
from rlhf.engine.ddp import DdpEngine, OptimizerOptions
from rlhf.kl import AdaptiveController, Controller, FixedController
from rlhf.models import add_lora, context_at, context_of, is_quantized, load_policy, load_value_model
from rlhf.ppo.experience import Actors
from rlhf.randomness import seed_everything
from rlhf.tokenization import Tokenization, load_tokenization
from rlhf.types import Prompt
from stages.context import StageContext
from stages.frozen import freeze
from stages.preflight import batch_divides
from stages.prompts import fitting_prompts
from stages.rewards import AnyReward, load_reward
from stages.sampling import native_generator


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
        self.order = torch.empty(0, dtype=torch.int64)

    def __getitem__(self, position: int) -> Prompt:
        """The prompt at a position, counted from 0 over all passes."""
        epoch, index = divmod(position, len(self.prompts))
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            self.order = torch.randperm(len(self.prompts), generator=generator)
            self.epoch = epoch
        return self.prompts[int(self.order[index])]


def prepare(context: StageContext) -> Cast:
    """Load the four models from their artifacts and wrap those that learn."""
    recipe, config = context.recipe, context.recipe.ppo
    batch_divides(recipe, "ppo", world_size())
    start = context.inputs["sft"]
    tokenization = load_tokenization(start.model, recipe.model)
    base = load_policy(start.model, tokenization, recipe.model, quantized=True)
    prompts = fitting_prompts(context, tokenization, context_of(base))
    reference = freeze(load_policy(start.model, tokenization, recipe.model, quantized=True), recipe)
    reward = load_reward(context.inputs["reward"], tokenization, recipe)
    critic = load_critic(reward, context, tokenization)
    if recipe.model.activation_checkpointing:
        for model in (base, critic):
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
            model.enable_input_require_grads()  # type: ignore[operator]  # with adapters nothing else would need one
    seed_everything(recipe.seed)
    lora = recipe.model.lora
    base, critic = placed(base), placed(critic)
    policy = DdpEngine(placed(add_lora(base, lora, "policy") if lora else base), _options(recipe, "policy"))
    value = DdpEngine(placed(add_lora(critic, lora, "value") if lora else critic), _options(recipe, "value"))
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


def load_critic(reward: AnyReward, context: StageContext, tokenization: Tokenization) -> nn.Module:
    """The value model: the reward model's weights, or the policy's with a head of zeros.

    The latter where the reward is no model, reads other tokens, or cannot attend to as many as the policy: its scores
    are then of a row's end, but a value is wanted at every token.
    """
    config, policy = context.recipe.model, context.inputs["sft"].model
    room = context_at(policy, config)
    shorter = isinstance(reward, RewardModel) and context_of(reward.model) < room
    if isinstance(reward, RewardModel) and not reward.by_text and not shorter:
        start = context.inputs["reward"].model
        return load_value_model(start, tokenization, config, reward.mean, reward.deviation, quantized=True)
    why = "the reward is no model that reads the policy's tokens"
    if isinstance(reward, RewardModel) and not reward.by_text:
        seen = context_of(reward.model)
        why = f"the reward model's context of {seen:,} tokens is shorter than the policy's of {room:,}"
    elif isinstance(reward, RewardModel):
        differing = ", ".join(tokenization.differing(reward.tokenization.contract))
        why = f"the reward model has another tokenizer contract ({differing} differ): it is fed text"
    context.say(f"{why}; the value model starts from the policy")
    return load_value_model(policy, tokenization, config, quantized=True)


def placed(model: nn.Module) -> nn.Module:
    """A model on this rank's device; one of few bits is there already."""
    return model if is_quantized(model) else model.to(device())


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
