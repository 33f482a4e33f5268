"""One side of `rlhf bench ppo`: steps of our PPO on models of a size, by the code that trains.

python -m stages.bench.ours '{"size": "15M", ...}' [float32 | bfloat16] [cpu | cuda]
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForTokenClassification

from reward_models.scoring import RewardModel
from rlhf.config import GenerationConfig, ParallelismConfig, PpoConfig
from rlhf.engine.choice import build
from rlhf.engine.optimizer import OptimizerOptions
from rlhf.generation.native import NativeGenerator
from rlhf.packing import accept
from rlhf.ppo.experience import Actors, collect
from rlhf.ppo.targets import find_targets
from rlhf.ppo.update import update
from stages.bench.load import NEVER, PAD, PROMPT_TOKENS, STOP, Load, checksum, flops, fresh, models
from stages.bench.turns import Turns


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


def main(load: Load, dtype: str, device: torch.device) -> None:
    """Take turns until told to end."""
    torch.set_num_threads(load.threads)
    turns = Turns()
    made = models(load)
    facts = {"checksum": checksum(made.policy), "tokens": load.tokens()}
    step = prepare(load, made, dtype == "bfloat16", device, turns)
    del made
    gc.collect()
    turns.ready(**facts, flops=flops(load))
    going_on, number = True, 0
    while going_on:
        number += 1
        started = time.perf_counter()
        sampled = step(number)
        going_on = turns.done(time.perf_counter() - started, response_tokens=sampled)


def prepare(load: Load, made: Any, bfloat16: bool, device: torch.device, turns: Turns) -> Any:
    """What makes one step, as stages/ppo.py does: it gives the number of tokens sampled."""
    policy, reference, reward = (model.to(device) for model in made[:3])
    value = fresh(AutoModelForTokenClassification, made.value.config).to(device)
    value.model.load_state_dict(made.value.model.state_dict())
    for module in value.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for model in (reference, reward):
        model.eval().requires_grad_(False)
        for parameter in model.parameters() if bfloat16 else ():  # buffers stay, as in stages/frozen.py
            parameter.data = parameter.data.to(torch.bfloat16)
    for model in (policy, reference, reward, value):
        accept(model)
    tokens, limits = Tokens(load.prompts()), load.lengths()
    generation = GenerationConfig(max_new_tokens=load.response_length)
    config = PpoConfig(
        prompts_per_step=load.batch,
        generation=generation,
        epochs=load.ppo_epochs,
        minibatches=1,
        micro_batch_tokens=load.micro * (PROMPT_TOKENS[1] + load.response_length),
    )
    # No token ends a response, for a random model may sample any: its length does, as on the other side.
    generator = NativeGenerator(policy, NEVER, PAD, generation, bfloat16)
    generator.limits = dict(enumerate(limits))
    generator.sample = turns.timed("generation", generator.sample)  # type: ignore[method-assign]
    options = OptimizerOptions(
        learning_rate=1e-5,
        learning_rate_end=1.0,
        warmup_steps=0,
        total_steps=1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bfloat16=bfloat16,
    )
    engines = [build(model, options, ParallelismConfig(processes=1), None) for model in (policy, value)]
    scorer: Any = RewardModel(reward, tokens, config.micro_batch_tokens)  # type: ignore[arg-type]
    actors = Actors(policy, reference, value, generator, scorer, tokens, bfloat16)  # type: ignore[arg-type]
    rows = list(range(load.batch))

    def step(number: int) -> int:
        with turns.phase("collecting"):
            experience, _ = collect(rows, rows, actors, config, (load.seed, number))  # type: ignore[arg-type]
        turns.phases["scoring"] = turns.phases.pop("collecting") - turns.phases["generation"]
        with turns.phase("training"):
            targets = find_targets(experience, config, 0.05, None)
            update(engines[0], engines[1], experience, targets, config, (load.seed, number))
        return int(experience.mask.sum())

    return step


if __name__ == "__main__":
    main(Load(**json.loads(sys.argv[1])), sys.argv[2], torch.device(sys.argv[3]))
