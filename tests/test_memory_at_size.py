"""The estimate of memory against what torch allocates at a real model's size, on tensors without storage."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, Qwen2Config

from rlhf import memory
from rlhf.layers import keep_less
from rlhf.logprobs import response_logprobs
from rlhf.memory import Computation
from rlhf.memory.forwards import CHUNK_PER_LOGIT, POLICY_PER_LOGIT, logits
from rlhf.products import own_products
from rlhf.shapes import AT_ONCE, shape_of_config
from rlhf.token_head import Asked, TokenHead
from tests.qwen import QWEN_05B as QWEN


class Allocated(TorchDispatchMode):
    """Bytes of the storages that operations make, alive and at most; on fake tensors, so that no memory is needed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.alive: dict[int, int] = {}
        self.peak = 0

    @property
    def now(self) -> int:
        return sum(self.alive.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_iter(made) if isinstance(leaf, Tensor)):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.alive and key not in self.weights:
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, self.now)
        return made


def taken(layers: int, half: bool, checkpointed: bool) -> tuple[int, int]:
    """Bytes kept of a forward of 8 rows of 256 + 256 tokens, and its peak."""
    config = Qwen2Config(**{**QWEN, "num_hidden_layers": layers})
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()  # type: ignore[no-untyped-call]
        own_products(model)
        keep_less(model)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        tokens, mask = torch.zeros(8, 512, dtype=torch.long), torch.ones(8, 512, dtype=torch.bool)
        with Allocated(model) as allocated, torch.autocast("cpu", torch.bfloat16, enabled=half):
            logprobs = response_logprobs(model, tokens, mask, 256, 1.0)
            kept = allocated.now
        del logprobs
    return kept, allocated.peak


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_counted_as_torch_takes_them_at_real_size(half: bool, checkpointed: bool) -> None:
    """A layer of Qwen2.5-0.5B, without padding, whose mask is not kept then."""
    two, four = (taken(layers, half, checkpointed) for layers in (2, 4))
    measured = (four[0] - two[0]) / 2
    how = Computation(bfloat16=half, checkpointing=checkpointed)
    small, large = (shape_of_config({**QWEN, "num_hidden_layers": layers}, "config.json") for layers in (2, 4))
    counted = (memory.activations(large, how, 8, 512) - memory.activations(small, how, 8, 512)) / 2
    assert counted == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("half", [False, True])
def test_logits_take_no_more_than_is_counted(half: bool) -> None:
    kept, peak = taken(1, half, False)
    logits = 8 * 256 * 151_936
    found = (peak - kept + 4 * logits) / logits  # of the logits, the backward keeps one copy in float32
    assert found == pytest.approx(18 if half else 20, rel=0.03)
    assert found < POLICY_PER_LOGIT


def test_log_probs_take_a_chunk_however_large_the_vocabulary() -> None:
    """Forward and backward of 2,048 tokens; whole, the logits of the largest would be 1 GiB, and several times that."""

    def peak(vocabulary: int) -> float:
        torch.manual_seed(0)
        head = TokenHead(16, vocabulary, bias=False)
        hidden = torch.randn(2048, 16, requires_grad=True)
        with Allocated(head) as allocated:
            head.asked = Asked(torch.randint(vocabulary, (2048,)), 1.0, True)
            head(hidden).sum().backward()
        return allocated.peak - 4 * 16 * vocabulary  # the gradient

    peaks = [peak(vocabulary) for vocabulary in (2**14, 2**15, 2**17)]
    assert max(peaks) == pytest.approx(min(peaks), rel=0.01)
    assert max(peaks) < 1.1 * CHUNK_PER_LOGIT * AT_ONCE


@pytest.mark.parametrize("learns", [False, True], ids=["adapters", "all weights"])
def test_a_head_in_bfloat16_takes_a_rounded_copy_and_what_learns_a_gradient(learns: bool) -> None:
    """512 tokens of Qwen2.5-0.5B's, forward and backward."""
    with FakeTensorMode():
        head = TokenHead(QWEN["hidden_size"], QWEN["vocab_size"], bias=False).requires_grad_(learns)
        hidden = torch.zeros(512, QWEN["hidden_size"], requires_grad=True)
        with Allocated(head) as allocated, torch.autocast("cpu", torch.bfloat16):
            head.asked = Asked(torch.zeros(512, dtype=torch.long), 1.0, False)
            head(hidden).sum().backward()
    how = Computation(bfloat16=True, checkpointing=False, packed=True, lora_rank=None if learns else 16)
    shape = shape_of_config(QWEN, "config.json")
    assert logits(shape, how, 512, POLICY_PER_LOGIT, learning=True) == pytest.approx(allocated.peak, rel=0.15)
