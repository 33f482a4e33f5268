"""`pytest -m gpu`: decoding as CUDA graphs gives what decoding gives, in less time; the figures are printed with -s.

tests/test_graphs.py has what can be known of it without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config

from rlhf.config import GenerationConfig
from rlhf.generation import native
from rlhf.generation.between import PLAIN, compiled
from rlhf.generation.decoder import Decoder, decoder_of
from rlhf.generation.graphs import CudaRecorder, GraphedDecoder
from rlhf.generation.native import NativeGenerator
from rlhf.generation.slots import Slots, Turn, additive_mask
from rlhf.packing import accept
from tests.test_decoder import CASES, policy
from tests.test_graphs import sampled
from tests.test_packing import PAD

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),  # inductor's
    # One test is about that alone: graphs are worth a look without.
    pytest.mark.filterwarnings("ignore:decoding is not compiled:RuntimeWarning"),
]
CUDA = torch.device("cuda")
HALF_BILLION = {  # Qwen2.5-0.5B's shape
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
SEQUENCES, PROMPT, NEW = 64, 64, 256


class Counting(CudaRecorder):
    """Counts what is recorded, and what is replayed."""

    counts = {"once": 0, "recorded": 0, "replayed": 0}

    def once(self, step: Callable[[], Tensor]) -> Tensor:
        """See `CudaRecorder`."""
        self.counts["once"] += 1
        return super().once(step)

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `CudaRecorder`."""
        self.counts["recorded"] += 1
        replay = super().record(step)

        def counted() -> Tensor:
            self.counts["replayed"] += 1
            return replay()

        return counted


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    monkeypatch.setattr(native, "CudaRecorder", Counting)
    Counting.counts = {"once": 0, "recorded": 0, "replayed": 0}
    return Counting.counts


def configs(**settings: Any) -> tuple[GenerationConfig, GenerationConfig]:
    """Without graphs, and with them."""
    plain = GenerationConfig(**settings)
    return plain, plain.model_copy(update={"cuda_graphs": True})


@pytest.mark.parametrize(("architecture", "options"), CASES, ids=str)
def test_samples_are_those_of_plain_decoding(
    architecture: str, options: dict[str, Any], counts: dict[str, int]
) -> None:
    model = policy(architecture, **options).to(CUDA)
    plain, found = (sampled(model, config) for config in configs(max_new_tokens=150, batch_size=6))
    assert counts["once"] == counts["recorded"] == 4 and counts["replayed"] > 120
    assert torch.equal(found.responses, plain.responses)
    torch.testing.assert_close(found.logprobs, plain.logprobs, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("by_compiler", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("architecture", "options"), CASES, ids=str)
def test_logits_of_a_replay_are_those_of_plain_decoding(
    architecture: str, options: dict[str, Any], bfloat16: bool, by_compiler: bool
) -> None:
    kind = torch.bfloat16 if bfloat16 else torch.float32
    model = policy(architecture, **options).to(CUDA)
    positions, found = torch.tensor([3, 17, 39, 8, 1], device=CUDA), []
    with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16):
        plain = decoder_of(model, bfloat16)
        assert plain is not None
        within = decoder_of(model, bfloat16, compiled(CUDA) if by_compiler else PLAIN)
        assert within is not None
        for reads in (plain, GraphedDecoder(within, CudaRecorder(CUDA))):
            slots = remembered(model, kind)
            for tokens in ([3, 4, 5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 15, 16, 17], [18, 19, 20, 21, 22]):
                places = torch.arange(5, device=CUDA) * slots.capacity + positions
                slots.turn = Turn(places, None, 0, 5, 40, additive_mask(positions + 1, 40, kind))
                logits = reads(torch.tensor(tokens, device=CUDA), positions, slots, torch.arange(5, device=CUDA))
                found.append(logits.float())
    for before, after in zip(found[:4], found[4:], strict=True):
        largest = float(before.abs().max())
        torch.testing.assert_close(after, before, atol=largest * (2e-2 if bfloat16 else 1e-5), rtol=0)


def remembered(model: Any, kind: torch.dtype) -> Slots:
    """Six slots of 40 tokens of random keys and values."""
    torch.manual_seed(5)
    shape, slots = model.config, Slots(6, 40, kind)
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    for layer in range(shape.num_hidden_layers):
        slots.memory[layer] = torch.randn(6 * 40, 2 * shape.num_key_value_heads, width).to(CUDA, kind)
    return slots


def test_layers_are_compiled() -> None:
    """Needs Triton and a C compiler; without them graphs have more kernels, and a warning says so."""
    assert compiled(CUDA) is not PLAIN


def test_memory_does_not_grow_from_batch_to_batch(counts: dict[str, int]) -> None:
    model, (_, config) = policy("qwen2").to(CUDA), configs(max_new_tokens=150, batch_size=6)
    reserved = []
    for _ in range(12):
        sampled(model, config, bfloat16=True)
        reserved.append(torch.cuda.memory_reserved())
    assert counts["replayed"] > 1200 and reserved[-1] == reserved[3], reserved


def test_weights_are_those_of_each_batch() -> None:
    """What was recorded with other weights is forgotten."""
    model, (plain, config) = policy("llama").to(CUDA), configs(max_new_tokens=60)
    sampled(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    without, with_graphs = sampled(model, plain), sampled(model, config)
    assert torch.equal(with_graphs.responses, without.responses)
    torch.testing.assert_close(with_graphs.logprobs, without.logprobs, atol=1e-4, rtol=0)


def half_billion() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(Qwen2Config(**HALF_BILLION), attn_implementation="sdpa")
    model.to(CUDA).eval()
    accept(model)
    return model


def seconds_a_step(model: nn.Module, config: GenerationConfig) -> float:
    """Of sampling, prompts and recordings included: the best of three batches behind a first one."""
    generator = NativeGenerator(model, -1, PAD, config, bfloat16=True)
    prompts, times = [[3 + row] * PROMPT for row in range(SEQUENCES)], []
    for number in range(4):
        torch.cuda.synchronize()
        started = time.perf_counter()
        generator.sample(prompts, range(SEQUENCES), seed=1, step=number)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / NEW)
    return min(times[1:])


def seconds_of_memory(model: nn.Module) -> float:
    """Weights and half of all keys and values read once in bfloat16, at the rate at which this GPU copies."""
    data = torch.empty(2**30, dtype=torch.uint8, device=CUDA)
    other, begin, end = torch.empty_like(data), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    other.copy_(data)
    begin.record()
    for _ in range(10):
        other.copy_(data)
    end.record()
    torch.cuda.synchronize()
    rate = 10 * 2 * data.nbytes / (begin.elapsed_time(end) / 1e3)
    shape: Any = model.config
    a_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.hidden_size // shape.num_attention_heads
    weights = sum(parameter.numel() for parameter in model.parameters())
    return 2 * (weights + SEQUENCES * (PROMPT + NEW / 2) * a_token) / rate


def test_it_takes_less_time() -> None:
    model = half_billion()
    plain, graphs = (seconds_a_step(model, config) for config in configs(max_new_tokens=NEW, batch_size=SEQUENCES))
    floor = seconds_of_memory(model)
    by_hand = seconds_of_a_replay(model)
    print(f"\nQwen2.5-0.5B's shape, {SEQUENCES} sequences, bfloat16, {torch.cuda.get_device_name()}, ms a step:")
    print(f"plain {1e3 * plain:.2f}, graphs {1e3 * graphs:.2f}, of which one replay is {1e3 * by_hand:.2f}")
    print(f"weights, keys and values read once at the rate of a copy: {1e3 * floor:.2f}")
    assert graphs < plain


@torch.no_grad()
def seconds_of_a_replay(model: nn.Module) -> float:
    """Of a recorded step and the head alone: no sampling, and nothing between steps."""
    capacity = PROMPT + NEW
    with torch.autocast("cuda", torch.bfloat16):
        decoder: Decoder | None = decoder_of(model, True, compiled(CUDA))
        assert decoder is not None
        slots = Slots(SEQUENCES, capacity, torch.bfloat16)
        shape: Any = model.config
        size = SEQUENCES * capacity, 2 * shape.num_key_value_heads, shape.hidden_size // shape.num_attention_heads
        for layer in range(shape.num_hidden_layers):
            slots.memory[layer] = torch.zeros(size, device=CUDA, dtype=torch.bfloat16)
        reads, rows = GraphedDecoder(decoder, CudaRecorder(CUDA)), torch.arange(SEQUENCES, device=CUDA)
        positions = torch.full_like(rows, PROMPT + NEW // 2)
        mask = additive_mask(positions + 1, PROMPT + NEW // 2 + 1, torch.bfloat16)
        slots.turn = Turn(rows * capacity + positions, None, 0, SEQUENCES, PROMPT + NEW // 2 + 1, mask)
        for _ in range(3):
            reads(rows, positions, slots, rows)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(50):
            reads(rows, positions, slots, rows)
        end.record()
        torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / 50
