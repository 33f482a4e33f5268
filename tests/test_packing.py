"""Packed is padded, to rounding: log-probs, entropies, values, scores, gradients of each architecture that packs."""

from __future__ import annotations

import copy
import random
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.batching import split_by_tokens
from rlhf.blocks import SIMILAR
from rlhf.config import GenerationConfig
from rlhf.generation.native import NativeGenerator
from rlhf.heads import head_of, sequence_scores, token_classifier
from rlhf.logprobs import response_logprobs, response_values
from rlhf.packing import ARCHITECTURES, accept, pack, packs
from rlhf.token_head import TokenHead

PAD, STOP, VOCABULARY = 0, 2, 97
PROMPTS, RESPONSES = [3, 9, 5, 5, 12, 1, 4], [20, 3, 11, 11, 1, 30, 5]
WIDTHS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
NAMES = {"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128, "sliding_window": None}
IDS = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": STOP}
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 128, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
}


def shape_of(architecture: str) -> Any:
    """A small configuration; two heads share keys where an architecture can do so."""
    return CONFIG_MAPPING[architecture](**WIDTHS, **NAMES, **IDS, **OWN.get(architecture, {}))


def two(architecture: str, kind: Any) -> tuple[Any, Any]:
    """A model that pads, and the same that packs."""
    torch.manual_seed(0)
    maker = getattr(kind, "from_config", None) or kind._from_config
    padding = maker(shape_of(architecture), attn_implementation="sdpa").eval()
    packing = copy.deepcopy(padding)
    accept(packing)
    assert packs(packing) and not packs(padding)
    return padding, packing


def batch() -> tuple[Tensor, Tensor]:
    """Left-padded prompts and right-padded responses, all lengths mixed; and which tokens are real."""
    prompt, response = max(PROMPTS), max(RESPONSES)
    columns = torch.arange(prompt + response)
    pairs = zip(PROMPTS, RESPONSES, strict=True)
    mask = torch.stack([(columns >= prompt - before) & (columns < prompt + after) for before, after in pairs])
    tokens = torch.randint(3, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(1))
    return tokens.masked_fill(~mask, PAD), mask


def gradients(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


@pytest.mark.parametrize("at_once", [2**24, VOCABULARY * 3])  # logits of a chunk: all at once, three tokens' at a time
@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_policy(architecture: str, entropy_gradient: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.token_head.AT_ONCE", at_once)
    tokens, mask = batch()
    real = mask[:, -max(RESPONSES) :]
    found = []
    models = two(architecture, AutoModelForCausalLM)
    assert isinstance(models[1].get_output_embeddings(), TokenHead)
    for model in models:
        figures = response_logprobs(model, tokens, mask, max(RESPONSES), 0.7, entropy_gradient)
        logprobs, entropy = figures.logprobs[real], figures.entropy[real]
        weights = torch.linspace(-1, 1, len(logprobs))
        (weights @ logprobs + (weights @ entropy if entropy_gradient else 0)).backward()
        found.append((logprobs.detach(), entropy.detach()))
        assert not logprobs.isnan().any() and bool(figures.logprobs[~real].isfinite().all())
    for padded, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)
    for padded, packed in zip(*map(gradients, models), strict=True):
        largest = float(padded.abs().max().clamp(min=1e-3))  # rounding goes with a tensor's largest gradient
        torch.testing.assert_close(packed, padded, atol=5e-6 * largest, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_scores(architecture: str) -> None:
    tokens, mask = batch()
    real = mask[:, -max(RESPONSES) :]
    padding, packing = two(architecture, token_classifier(shape_of(architecture)))
    with torch.no_grad():
        values = [response_values(model, tokens, mask, max(RESPONSES))[real] for model in (padding, packing)]
    torch.testing.assert_close(values[1], values[0], atol=1e-5, rtol=0)
    padding, packing = two(architecture, AutoModelForSequenceClassification)
    if head_of(padding) is None:
        return
    with torch.no_grad():
        torch.testing.assert_close(
            sequence_scores(packing, tokens, mask), sequence_scores(padding, tokens, mask), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.6}], ids=["all", "nucleus"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_refilled_slots_sample_what_a_padded_batch_does(architecture: str, options: dict[str, float]) -> None:
    """The same tokens, however many responses are decoded at once; each with the log-probs of a padded batch."""
    models = two(architecture, AutoModelForCausalLM)
    for model in models:
        head = model.get_output_embeddings()
        head.bias = nn.Parameter(torch.zeros(VOCABULARY))
        head.bias.data[STOP] = 2.0
    chance = random.Random(1)
    prompts = [[chance.randrange(3, VOCABULARY) for _ in range(chance.randint(1, 12))] for _ in range(23)]

    def sample(model: nn.Module, size: int) -> Any:
        config = GenerationConfig(max_new_tokens=20, batch_size=size, **options)
        return NativeGenerator(model, STOP, PAD, config).sample(prompts, range(len(prompts)), seed=3, step=5)

    padded = sample(models[0], 256)
    assert len(padded.mask.sum(-1).unique()) > 4
    for size in (256, 5, 1):
        packed = sample(models[1], size)
        assert torch.equal(packed.responses, padded.responses) and torch.equal(packed.mask, padded.mask)
        torch.testing.assert_close(packed.logprobs, padded.logprobs, atol=1e-5, rtol=0)
        torch.testing.assert_close(packed.sampler_logprobs, padded.sampler_logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [256, 7, 2, 1])
def test_a_prompt_that_several_answer_is_read_once(size: int) -> None:
    """By as many as enter together; what is sampled is what rows with prompts of their own would get."""
    padding, model = two("llama", AutoModelForCausalLM)
    chance = random.Random(2)
    each = [[chance.randrange(3, VOCABULARY) for _ in range(length)] for length in (9, 4, 4, 12, 1)]
    prompts = [prompt for prompt in each for _ in range(3)]
    read: list[int] = []

    def sample(model: nn.Module) -> Any:
        config = GenerationConfig(max_new_tokens=12, batch_size=size)
        generator = NativeGenerator(model, -1, PAD, config)
        generator.limits = {row: 1 + row % 5 for row in range(len(prompts))}
        return generator.sample(prompts, range(len(prompts)), seed=3, step=5)

    wanted = sample(padding)
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    found = sample(model)
    assert torch.equal(found.responses, wanted.responses)
    torch.testing.assert_close(found.logprobs, wanted.logprobs, atol=1e-5, rtol=0)
    once, decoded = sum(map(len, each)), int(wanted.mask.sum()) - len(prompts)
    assert sum(read) == once + decoded if size == 256 else once + decoded <= sum(read) <= 3 * once + decoded
    assert size > 2 or sum(read) > once + decoded


def test_limits_end_responses_early() -> None:
    _, model = two("llama", AutoModelForCausalLM)
    for size in (256, 2):
        generator = NativeGenerator(model, -1, PAD, GenerationConfig(max_new_tokens=9, batch_size=size))
        generator.limits = {4: 1, 6: 3}
        sampled = generator.sample([[5]] * 4, [3, 4, 5, 6], seed=0, step=1)
        assert sampled.mask.sum(-1).tolist() == [9, 1, 9, 3] and not sampled.finished.any()


def test_what_does_not_pack_is_left_alone() -> None:
    windowed = shape_of("mistral")
    windowed.sliding_window = 8
    eager = AutoModelForCausalLM.from_config(shape_of("llama"), attn_implementation="eager")
    for model in (AutoModelForCausalLM.from_config(windowed, attn_implementation="sdpa"), eager):
        before = model.config._attn_implementation
        accept(model)
        assert not packs(model) and model.config._attn_implementation == before


def test_the_way_a_model_attends_is_in_no_file(tmp_path: Any) -> None:
    _, packing = two("llama", AutoModelForCausalLM)
    packing.save_pretrained(tmp_path)
    assert "rlhf" not in (tmp_path / "config.json").read_text()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
@settings(deadline=None, max_examples=100)
def test_blocks_hold_neighbours_of_similar_length(lengths: list[int]) -> None:
    packing = pack(lengths, torch.device("cpu"))
    assert packing.starts.tolist() == [0, *accumulate(lengths)] and packing.longest == max(lengths)
    assert [block.begin for block in packing.blocks[1:]] == [block.end for block in packing.blocks[:-1]]
    first = 0
    for block in packing.blocks:
        inside = lengths[first : first + block.count]
        first += block.count
        assert block.end - block.begin == sum(inside) and block.width == max(inside)
        assert min(inside) >= SIMILAR * max(inside)
        if block.spread is None or block.back is None:
            assert min(inside) == max(inside)
            continue
        assert block.spread[block.back].tolist() == list(range(sum(inside)))
    assert first == len(lengths)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=25), st.integers(1, 300))
@settings(deadline=None, max_examples=100)
def test_packed_micro_batches_are_cut_by_real_tokens(widths: list[tuple[int, int]], budget: int) -> None:
    cut = split_by_tokens(widths, budget, packed=True)
    assert sorted(index for part in cut for index in part) == list(range(len(widths)))
    costs = [sum(sum(widths[i]) for i in part) for part in cut]
    assert all(len(part) == 1 or cost <= budget for part, cost in zip(cut, costs, strict=True))
    for cost, following in zip(costs, cut[1:], strict=False):
        assert cost + sum(widths[following[0]]) > budget
