"""One side of `rlhf bench ppo`: steps of our PPO on models of a size, or of a recipe's, by the code that trains.

python -m stages.bench.ours '{"size": "15M", ...}' [float32 | bfloat16] [cpu | cuda]
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reward_models.scoring import RewardModel
from rlhf.adapters import AdapterOff
from rlhf.config import GenerationConfig, ModelConfig, PpoConfig, Recipe
from rlhf.devices import settled_recipe
from rlhf.distributed import device
from rlhf.engine import Engine
from rlhf.engine.choice import build, sharding_of
from rlhf.generation.native import NativeGenerator
from rlhf.heads import token_classifier
from rlhf.heap import keep_freed
from rlhf.offload import offloaded_models
from rlhf.packing import accept
from rlhf.ppo.experience import Actors, collect
from rlhf.ppo.targets import find_targets
from rlhf.ppo.update import update
from rlhf.trunk import PolicyWithValueHead
from stages.bench.load import NEVER, PAD, STOP, Load, checksum, flops, fresh, models
from stages.bench.turns import Turns
from stages.cast import optimizer_options
from stages.command import quiet_libraries
from stages.critic import learning
from stages.frozen import freeze


class Tokens:
    """Stands in for a tokenizer: a prompt is its number in the load, and nobody reads the text."""

    pad_id, stop_id = PAD, STOP

    def __init__(self, prompts: list[list[int]]) -> None:
        self.prompts = prompts

    def prompt(self, number: int) -> list[int]:
        """Token ids."""
        return self.prompts[number]

    def text(self, tokens: list[int]) -> str:
        """Nothing."""
        return ""


def main(load: Load, dtype: str) -> None:
    """Take turns until told to end."""
    quiet_libraries()
    if device().type == "cpu":  # as `stages.command.run_stage` does
        keep_freed()
    torch.set_num_threads(load.threads)
    turns = Turns()
    made = models(load)
    facts = {"checksum": checksum(made.policy), "tokens": load.tokens()}
    step = prepare(load, made, dtype, turns)
    del made
    gc.collect()
    turns.ready(**facts, flops=flops(load))
    going_on, number = True, 0
    while going_on:
        number += 1
        started = time.perf_counter()
        sampled = step(number)
        going_on = turns.done(time.perf_counter() - started, response_tokens=sampled)


def recipe_of(load: Load, dtype: str) -> Recipe:
    """The recipe that is measured, or what a load's own options say as one; nothing in it is `auto`."""
    if load.recipe is not None:
        recipe = Recipe.model_validate_json(json.dumps(load.recipe))
    else:
        model = ModelConfig.model_validate({"dtype": dtype, "attention": "sdpa", "activation_checkpointing": False})
        ppo = PpoConfig(
            prompts_per_step=load.batch // load.responses_per_prompt,
            responses_per_prompt=load.responses_per_prompt,
            generation=GenerationConfig(max_new_tokens=load.response_length),
            epochs=load.ppo_epochs,
            minibatches=1,
            micro_batch_tokens=load.micro * (load.prompt_tokens[1] + load.response_length),
            learning_rate=1e-5,
        )
        recipe = Recipe(model=model, ppo=ppo)
    return settled_recipe(recipe, "ppo", load.shape)


def prepare(load: Load, made: Any, dtype: str, turns: Turns) -> Callable[[int], int]:
    """What makes one step, as stages/ppo.py does: it gives the number of tokens sampled."""
    recipe = recipe_of(load, dtype)
    config, bfloat16, parallelism = recipe.ppo, recipe.model.dtype == "bfloat16", recipe.parallelism_of("ppo")
    sharding, moved = sharding_of(parallelism), parallelism.strategy != "ddp"
    base, reference, reward = made[:3]
    for model in (base, reference, reward):
        accept(model)
    # The order of stages/cast.py, which loads what is made here.
    reward = freeze(reward, recipe, sharding, scores=True)
    policy = learning(base, recipe, "policy", moved)
    frozen = AdapterOff(policy) if recipe.model.lora else freeze(reference, recipe, sharding)
    trunk = PolicyWithValueHead(policy) if config.has_value and not config.has_critic else None
    engine = build(trunk or policy, optimizer_options(recipe, "policy"), parallelism, sharding)
    value: Engine | None = engine if trunk else None
    if config.has_critic:
        critic = learning(critic_of(made.value, recipe), recipe, "value", moved)
        value = build(critic, optimizer_options(recipe, "value"), parallelism, sharding)
    tokens = Tokens(load.prompts())
    # No token ends a response, for a random model may sample any: its length does, as on the other side.
    generator = NativeGenerator(policy, NEVER, PAD, config.generation, bfloat16)
    generator.limits = dict(enumerate(load.lengths()))
    generator.sample = turns.timed("generation", generator.sample)  # type: ignore[method-assign]
    scorer: Any = RewardModel(reward, tokens, config.micro_batch_tokens)  # type: ignore[arg-type]
    values, lockstep = value.module if value else None, sharding is not None
    of = {"reference": [frozen], "reward": [reward]}
    away = {role: offloaded_models(of[role]) for role in of if role in config.offload}
    actors = Actors(policy, frozen, values, generator, scorer, tokens, bfloat16, lockstep, away)  # type: ignore[arg-type]
    rows = list(range(load.batch))

    def step(number: int) -> int:
        with turns.phase("collecting"):
            experience, _ = collect(rows, rows, actors, config, (load.seed, number))  # type: ignore[arg-type]
        turns.phases["scoring"] = turns.phases.pop("collecting") - turns.phases["generation"]
        with turns.phase("training"):
            targets = find_targets(experience, config, config.kl.coef, None)
            update(engine, value, experience, targets, config, (load.seed, number))
        return int(experience.mask.sum())

    return step


def critic_of(classifier: Any, recipe: Recipe) -> nn.Module:
    """A value model with a sequence classifier's trunk."""
    critic = fresh(token_classifier(classifier.config), classifier.config, recipe.model.attention)
    trunk = classifier.base_model_prefix
    getattr(critic, trunk).load_state_dict(getattr(classifier, trunk).state_dict())
    for module in critic.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    accept(critic)
    return critic  # type: ignore[no-any-return]


if __name__ == "__main__":
    main(Load(**json.loads(sys.argv[1])), sys.argv[2])
