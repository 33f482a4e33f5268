"""`pytest -m gpu`: kernels for variable lengths against padded attention, and memory that is given back."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf.logprobs import response_logprobs
from rlhf.offload import offloaded_models
from rlhf.packing import BY_FLASH, accept
from rlhf.sharding import autocast

pytestmark = pytest.mark.gpu
SHAPE = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
PROMPTS, RESPONSES = [3, 90, 5, 50, 120, 1, 4], [200, 3, 11, 110, 1, 300, 5]


@pytest.mark.parametrize("kernel", ["torch", "flash"])
def test_packed_is_padded_to_the_rounding_of_bfloat16(kernel: str) -> None:
    if kernel == "flash" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=500, intermediate_size=512, **SHAPE)
    padding = AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa").cuda()
    packing = copy.deepcopy(padding)
    if kernel == "flash":
        packing.set_attn_implementation("flash_attention_2")
    accept(packing)
    assert (packing.config._attn_implementation == BY_FLASH) == (kernel == "flash")
    columns, prompt = torch.arange(max(PROMPTS) + max(RESPONSES)), max(PROMPTS)
    pairs = zip(PROMPTS, RESPONSES, strict=True)
    mask = torch.stack([(columns >= prompt - before) & (columns < prompt + after) for before, after in pairs])
    tokens = torch.randint(3, 500, mask.shape).masked_fill(~mask, 0)
    real, found, gradients = mask[:, prompt:].cuda(), [], []
    for model, narrow in ((padding, False), (padding, True), (packing, True)):
        model.zero_grad()
        with autocast(model, narrow):
            logprobs = response_logprobs(model, tokens, mask, max(RESPONSES), 1.0).logprobs[real]
        logprobs.sum().backward()
        found.append(logprobs.detach().float())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone())
    for figures in (found, gradients):
        exact, rounded, packed = figures
        assert (packed - exact).norm() < 2 * (rounded - exact).norm() + 1e-3 * exact.norm()


def test_what_is_away_takes_no_memory_of_the_gpu() -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4))).cuda().requires_grad_(False)
    given = torch.randn(8, 1024, device="cuda")
    expected, size = model(given), sum(parameter.nbytes for parameter in model.parameters())
    before = torch.cuda.memory_allocated()
    away = offloaded_models([model])
    assert before - torch.cuda.memory_allocated() >= size
    with away.at_hand():
        assert torch.equal(model(given), expected)
    assert before - torch.cuda.memory_allocated() >= size
    assert all(copy.is_pinned() for _, copy in away.kept.values())
