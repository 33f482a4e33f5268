"""Run by the interpreter of vLLM's environment: a policy sampled by vLLM in this process, and changed, three times.

    python vllm_here.py MODEL PROMPTS ANSWER

MODEL is a model's directory, PROMPTS a JSON list of token ids. ANSWER gets JSON: of each turn how far its log-probs are
from transformers' on the same weights, whether the same seed gives the same tokens, which responses were told of; and
whether the process is as it was.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rlhf.config import GenerationConfig
from rlhf.generation.vllm_here import VllmHere
from rlhf.packing import accept

NEW_TOKENS, TEMPERATURE, STOP, PAD = 24, 0.7, 2, 0


def main(directory: Path, prompts: list[list[int]]) -> dict[str, Any]:
    """Ask three policies, of which vLLM is told."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory).eval()
    plain: Any = AutoModelForCausalLM.from_pretrained(directory).eval()
    accept(model)
    config = GenerationConfig.model_validate(
        {"engine": "vllm", "weights": "replica", "max_new_tokens": NEW_TOKENS, "temperature": TEMPERATURE}
        | {"batch_size": 16}
    )
    states = torch.get_rng_state(), random.getstate(), torch.set_num_threads, torch.get_num_threads()
    generator = VllmHere(model, STOP, PAD, config)
    turns = []
    for _ in range(3):
        told: list[int] = []
        rows = range(len(prompts))
        sampled = generator.sample(prompts, rows, seed=1, step=1, ended=lambda place, _, told=told: told.append(place))  # type: ignore[misc]
        again = generator.sample(prompts, rows, seed=1, step=1)
        worst = 0.0
        for row, prompt in enumerate(prompts):
            response = sampled.responses[row][sampled.mask[row]]
            with torch.no_grad():
                logits = plain(torch.tensor([prompt + response.tolist()])).logits[0, len(prompt) - 1 : -1]
            own = (logits / TEMPERATURE).log_softmax(-1).gather(-1, response[:, None]).squeeze(-1)
            worst = max(worst, float((own - sampled.logprobs[row][sampled.mask[row]]).abs().max()))
        turns.append(
            {"apart": worst, "again": torch.equal(again.responses, sampled.responses), "told": sorted(told)}
            | {
                "responses": [
                    response[mask].tolist() for response, mask in zip(sampled.responses, sampled.mask, strict=True)
                ]
            }
        )
        before = torch.get_rng_state()
        torch.manual_seed(len(turns))
        with torch.no_grad():
            for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
                parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
                other.copy_(parameter)
        torch.set_rng_state(before)
        generator.load(model)
    same = [
        torch.equal(torch.get_rng_state(), states[0]),
        random.getstate() == states[1],
        torch.set_num_threads is states[2],
        torch.get_num_threads() == states[3],
    ]
    return {"turns": turns, "same": same}


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
