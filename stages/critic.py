"""The models of PPO that learn: where the value model starts from, and what is done to both before."""

from __future__ import annotations

from typing import Any

from torch import nn

from reward_models.scoring import RewardModel
from rlhf.config import Recipe
from rlhf.distributed import device
from rlhf.errors import ConfigError
from rlhf.models import add_lora, context_at, context_of, is_quantized, load_value_model
from rlhf.tokenization import Tokenization
from stages.context import StageContext
from stages.rewards import AnyReward


def load_critic(reward: AnyReward, context: StageContext, tokenization: Tokenization) -> nn.Module:
    """The value model: the reward model's weights, or the policy's with a head of zeros.

    The latter where the recipe says so, or the reward is no model, reads other tokens, or cannot attend to as many as
    the policy: its scores are then of a row's end, but a value is wanted at every token. Raises ConfigError where the
    recipe wants a start from the reward model all the same.
    """
    config, policy = context.recipe.model, context.inputs["sft"].model
    ppo = context.recipe.ppo
    wanted = ppo.value_start
    why = obstacle(reward, context_at(policy, config), tokenization)
    share = ppo.reward_weight * ppo.score_scale  # of a score in what values are worth
    if isinstance(reward, RewardModel) and why is None and wanted != "policy" and share:
        start, mean, deviation = context.inputs["reward"], reward.mean, reward.deviation
        if ppo.normalize_scores == "running":  # what the first steps' statistics will be near to
            mean, deviation = start.results["score_mean"], start.results["score_deviation"] or 1.0
        return load_value_model(start.model, tokenization, config, mean, deviation / share, quantized=True)
    if wanted == "reward":
        raise ConfigError(f"ppo.value_start=reward: {why}; use value_start=policy")
    if why:
        context.say(f"{why}; the value model starts from the policy")
    return load_value_model(policy, tokenization, config, quantized=True)


def obstacle(reward: AnyReward, room: int, tokenization: Tokenization) -> str | None:
    """Why no value model can start from a reward, if none can; room: tokens that the policy attends to."""
    if not isinstance(reward, RewardModel):
        return "the reward is no model that reads the policy's tokens"
    if reward.by_text:
        differing = ", ".join(tokenization.differing(reward.tokenization.contract))
        return f"the reward model has another tokenizer contract ({differing} differ): it is fed text"
    if (seen := context_of(reward.model)) < room:
        return f"the reward model's context of {seen:,} tokens is shorter than the policy's of {room:,}"
    return None


def learning(model: Any, recipe: Recipe, role: str, moved: bool = False) -> nn.Module:
    """A model ready to learn, on this rank's device, with fresh adapters if the recipe wants any; seed torch before.

    moved: by its engine, block by block; until then it stays where it is.
    """
    if recipe.model.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()  # with adapters nothing else would need one
    lora, place = recipe.model.lora, (lambda model: model) if moved else placed
    model = place(model)
    return place(add_lora(model, lora, role)) if lora else model


def placed(model: nn.Module) -> nn.Module:
    """A model on this rank's device; one of few bits is there already."""
    return model if is_quantized(model) else model.to(device())
