"""A generator that asks servers, a tiny policy for it, and what its log-probs ought to be."""

from __future__ import annotations

from typing import Any

import torch
from generation_server import Server
from torch import nn

from rlhf.config import GenerationConfig, GenerationServerConfig, LoraConfig
from rlhf.generation.vllm import VllmGenerator
from rlhf.logprobs import response_logprobs
from rlhf.models import add_lora
from rlhf.types import Sampled
from tests.test_models import tiny_policy, tiny_tokenization

TOKENIZATION = tiny_tokenization()
PROMPTS = [TOKENIZATION.tokenizer(text)["input_ids"] for text in ("The cat", "a", "and the dog sat on the", "A dog")]
ROWS = [4, 1, 7, 2]
NEW_TOKENS, TEMPERATURE = 8, 0.7


def policy(seed: int = 0, adapted: bool = False) -> Any:
    torch.manual_seed(seed)
    made: Any = tiny_policy()
    if adapted:
        made = add_lora(made, LoraConfig(rank=2, alpha=4.0), "policy")
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
    return made.eval()


def generator(model: nn.Module, *servers: Server | str, **config: float) -> VllmGenerator:
    addresses = [server if isinstance(server, str) else server.address for server in servers]
    settings = {"patience_seconds": 5.0, "timeout_seconds": 10.0, **config}
    return VllmGenerator(
        model,
        TOKENIZATION.stop_id,
        TOKENIZATION.pad_id,
        GenerationConfig(
            engine="vllm",
            weights="server",
            server=GenerationServerConfig(addresses=addresses, **settings),
            max_new_tokens=NEW_TOKENS,
            temperature=TEMPERATURE,
        ),
    )


def sample(asked: VllmGenerator, step: int = 1) -> Sampled:
    return asked.sample(PROMPTS, ROWS, seed=3, step=step)


def own_logprobs(model: nn.Module, sampled: Sampled) -> torch.Tensor:
    """The policy's own of what was sampled, row by row."""
    found = torch.zeros_like(sampled.logprobs)
    for row, prompt in enumerate(PROMPTS):
        response = sampled.responses[row][sampled.mask[row]]
        tokens = torch.cat([torch.tensor(prompt), response])[None]
        mask = torch.ones_like(tokens, dtype=torch.bool)
        with torch.no_grad():
            own = response_logprobs(model, tokens, mask, len(response), TEMPERATURE)
        found[row, : len(response)] = own.logprobs[0]
    return found
