"""How much memory a process takes more after many batches of other lengths each: python tests/growing.py [BATCHES]."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf.logprobs import response_logprobs
from rlhf.packing import accept

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
WARM, ROWS, LONGEST, PROMPT = 20, 16, 60, 8  # batches; rows of a batch; tokens


def resident() -> float:
    """MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main(batches: int) -> None:
    """Print the growth behind the first batches in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chance = random.Random(0)
    shape = LlamaConfig(vocab_size=512, **SHAPE)
    model = AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa")
    accept(model)
    before = 0.0
    for number in range(batches):
        lengths = torch.tensor([PROMPT + chance.randint(3, LONGEST) for _ in range(ROWS)])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        tokens = torch.randint(3, 512, mask.shape)
        response_logprobs(model, tokens, mask, int(lengths.max()) - PROMPT, 1.0).logprobs.sum().backward()
        model.zero_grad()
        if number == WARM:
            before = resident()
    print(resident() - before)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
