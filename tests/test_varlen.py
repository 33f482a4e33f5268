"""What the kernels for variable lengths are given: by stand-ins that compute it sequence by sequence, with a mask.

The kernels themselves run on CUDA alone: tests/gpu/test_varlen.py.
"""

from __future__ import annotations

import copy
import inspect
import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from imitated_cuda import block_diagonal
from torch import Tensor
from torch.nn.attention import varlen
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf import packing
from rlhf.config import GenerationConfig
from rlhf.generation.native import NativeGenerator
from rlhf.heads import sequence_scores
from rlhf.logprobs import response_logprobs
from rlhf.packing import BY_FLASH, accept, packs
from tests.test_packing import PAD, PROMPTS, RESPONSES, STOP, batch, gradients, shape_of

LENGTHS = [before + after for before, after in zip(PROMPTS, RESPONSES, strict=True)]
KERNELS = ["flash", "torch", "torch 2.11"]


class Kernel:
    """Stands in for both kernels, on a CPU."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        self.signature = inspect.signature(varlen.varlen_attn)
        if name == "torch 2.11":  # what it has not yet
            later = ("enable_gqa", "seqused_k", "block_table", "num_splits")
            kept = [each for each in self.signature.parameters.values() if each.name not in later]
            self.signature = self.signature.replace(parameters=kept)
        flash = ModuleType("flash_attn")
        setattr(flash, "flash_attn_varlen_func", self.by_flash if name == "flash" else None)  # noqa: B010
        monkeypatch.setitem(sys.modules, "flash_attn", flash)
        monkeypatch.setattr(varlen, "varlen_attn", self.of_torch() if name.startswith("torch") else None)
        monkeypatch.setattr(packing, "has_kernel", lambda query, kind: True)
        monkeypatch.setattr(packing, "fillers", lambda *_: 0)  # as where there are kernels

    def by_flash(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:
        """With the arguments of flash-attn 2.8."""
        assert causal and not dropout_p
        return self.answer(q, k, v, (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), softmax_scale)

    def of_torch(self) -> Any:
        """With the arguments of the torch that is here, or of an older one."""

        def by_torch(*given: Any, **named: Any) -> Tensor:
            return self.by_torch(self.signature.bind(*given, **named).arguments)

        setattr(by_torch, "__signature__", self.signature)  # noqa: B010
        return by_torch

    def by_torch(self, found: dict[str, Any]) -> Tensor:
        """As it was called."""
        assert found["window_size"] == (-1, 0)  # all before, nothing behind
        if "enable_gqa" in self.signature.parameters:
            assert found["enable_gqa"] == (found["query"].shape[1] != found["key"].shape[1])
        starts, longest = (found["cu_seq_q"], found["cu_seq_k"]), (found["max_q"], found["max_k"])
        return self.answer(found["query"], found["key"], found["value"], starts, longest, found["scale"])

    def answer(
        self, query: Tensor, key: Tensor, value: Tensor, starts: Any, longest: Any, scale: float | None
    ) -> Tensor:
        """Checks what both want, and computes."""
        for part in (query, key, value):
            assert part.dim() == 3 and part.stride(-1) == 1
        for bounds, most in zip(starts, longest, strict=True):
            assert bounds.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(query) and type(most) is int
        lengths = [b - a for a, b in pairwise(starts[0].tolist())]
        assert longest == (max(lengths), max(lengths)) and min(lengths) > 0
        self.calls.append({"lengths": lengths, "heads": (query.shape[1], key.shape[1])})
        return block_diagonal(query, key, value, starts[0], scale)


def two(kernel: str, architecture: str, kind: Any) -> tuple[Any, Any]:
    """A model that pads, and the same that packs as one with this attention does."""
    torch.manual_seed(0)
    padding = kind.from_config(shape_of(architecture), attn_implementation="sdpa").eval()
    model = copy.deepcopy(padding)
    if kernel == "flash":
        model.config._attn_implementation_internal = "flash_attention_2"  # which cannot be loaded here
    accept(model)
    assert packs(model) and (model.config._attn_implementation == BY_FLASH) == (kernel == "flash")
    return padding, model


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # with shared keys, and without
def test_logprobs_and_gradients(architecture: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called, (tokens, mask) = Kernel(kernel, monkeypatch), batch()
    real = mask[:, -max(RESPONSES) :]
    models = two(kernel, architecture, AutoModelForCausalLM)
    found = []
    for model in models:
        logprobs = response_logprobs(model, tokens, mask, max(RESPONSES), 0.7).logprobs[real]
        (torch.linspace(-1, 1, len(logprobs)) @ logprobs).backward()
        found.append(logprobs.detach())
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)
    for padded, packed in zip(*map(gradients, models), strict=True):
        torch.testing.assert_close(packed, padded, atol=5e-6 * float(padded.abs().max().clamp(min=1e-3)), rtol=0)
    assert [call["lengths"] for call in called.calls] == [LENGTHS] * 2  # of each layer
    assert {call["heads"] for call in called.calls} == {(4, 2 if architecture == "llama" else 4)}


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called, (tokens, mask) = Kernel(kernel, monkeypatch), batch()
    padding, model = two(kernel, "qwen2", AutoModelForSequenceClassification)
    with torch.no_grad():
        torch.testing.assert_close(
            sequence_scores(model, tokens, mask), sequence_scores(padding, tokens, mask), atol=1e-5, rtol=0
        )
    assert called.calls


@pytest.mark.parametrize("kernel", KERNELS)
def test_prompts_of_what_is_sampled(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = Kernel(kernel, monkeypatch)
    models = two(kernel, "llama", AutoModelForCausalLM)
    prompts = [[3, 4, 5, 6], [7], [8, 9, 10], [11, 12]]
    config = GenerationConfig(max_new_tokens=6, batch_size=3)
    padded, packed = (
        NativeGenerator(model, STOP, PAD, config).sample(prompts, range(4), seed=1, step=2) for model in models
    )
    assert torch.equal(packed.responses, padded.responses)
    torch.testing.assert_close(packed.logprobs, padded.logprobs, atol=1e-5, rtol=0)
    assert called.calls[0]["lengths"] == [4, 3, 2]


def test_a_padded_call_is_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    called, (tokens, mask) = Kernel("flash", monkeypatch), batch()
    padding, model = two("flash", "llama", AutoModelForCausalLM)
    with torch.no_grad():
        padded, same = (
            each(input_ids=tokens, attention_mask=mask, use_cache=False).logits[mask] for each in (padding, model)
        )
    torch.testing.assert_close(same, padded, atol=1e-6, rtol=0)
    assert not called.calls


def test_without_a_gpu_there_is_no_kernel() -> None:
    assert not packing.has_kernel(torch.zeros(1, 2, 3, 64), torch.bfloat16)
