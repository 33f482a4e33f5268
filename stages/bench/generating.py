"""One side of `rlhf bench generate`: our sampler, or transformers' `generate`, on the same prompts and lengths.

python -m stages.bench.generating '{"size": "15M", ...}' [float32 | bfloat16] [cpu | cuda] [rlhf | transformers]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import LogitsProcessorList

from rlhf.adapters import add_lora
from rlhf.batching import pad
from rlhf.config import GenerationConfig, Recipe
from rlhf.generation.native import NativeGenerator
from rlhf.heap import keep_freed
from rlhf.packing import accept
from stages.bench.endings import Endings
from stages.bench.load import NEVER, PAD, Load, checksum, flops, models
from stages.bench.turns import Turns


def main(load: Load, bfloat16: bool, device: torch.device, side: str) -> None:
    """Take turns until told to end."""
    if side == "rlhf" and device.type == "cpu":  # as `stages.command.run_stage` does
        keep_freed()
    torch.set_num_threads(load.threads)
    turns = Turns()
    policy = models(load).policy.eval()
    # Before it moves: a GPU adds up in another order than the other side's CPU.
    facts = {"checksum": checksum(policy), "tokens": sum(load.lengths()), "version": transformers.__version__}
    policy = policy.to(device)
    recipe = Recipe.model_validate_json(json.dumps(load.recipe)) if load.recipe else None
    config = recipe.ppo.generation if recipe else GenerationConfig(max_new_tokens=load.response_length)
    if side == "rlhf":
        accept(policy)
    if recipe and recipe.model.lora:
        policy = add_lora(policy, recipe.model.lora, "policy").to(device)
    sample = (ours if side == "rlhf" else theirs)(policy, load, config, bfloat16, device)
    turns.ready(**facts, flops={"generation": flops(load)["generation"]})
    going_on, number = True, 0
    while going_on:
        number += 1
        started = time.perf_counter()
        with turns.phase("generation"), torch.no_grad():
            sampled = sample(number)
        going_on = turns.done(time.perf_counter() - started, response_tokens=sampled)


def ours(
    policy: Any, load: Load, config: GenerationConfig, bfloat16: bool, device: torch.device
) -> Callable[[int], int]:
    """The sampler of PPO; how many tokens it sampled."""
    limits, prompts = load.lengths(), load.prompts()
    # No token ends a response, for a random model may sample any: its length does, as on the other side.
    generator = NativeGenerator(policy, NEVER, PAD, config, bfloat16)
    generator.limits = dict(enumerate(limits))
    rows = range(load.batch)

    def sample(number: int) -> int:
        return int(generator.sample(prompts, rows, seed=load.seed, step=number).mask.sum())

    return sample


def theirs(
    policy: Any, load: Load, config: GenerationConfig, bfloat16: bool, device: torch.device
) -> Callable[[int], int]:
    """`generate` with the whole batch at once; what ends its responses writes two columns of the scores a token."""
    tokens, mask = (part.to(device) for part in pad(load.prompts(), PAD, "left"))
    endings = Endings(load)

    def sample(number: int) -> int:
        torch.manual_seed(number)
        endings.again()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            output = policy.generate(
                input_ids=tokens,
                attention_mask=mask.long(),
                do_sample=True,
                top_k=0,
                temperature=config.temperature,
                top_p=config.top_p,
                max_new_tokens=load.response_length,
                logits_processor=LogitsProcessorList([endings]),
            )
        return int((output[:, tokens.shape[1] :] != PAD).sum())  # behind its stop token a row is padded

    return sample


if __name__ == "__main__":
    main(Load(**json.loads(sys.argv[1])), sys.argv[2] == "bfloat16", torch.device(sys.argv[3]), sys.argv[4])
