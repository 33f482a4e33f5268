from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.batching import position_ids
from rlhf.logprobs import gather_logprobs, response_logprobs, response_values
from tests import reference

VOCABULARY = 11


class Oracle(nn.Module):
    """A model whose logits are a table [batch, length, width], given as a causal language model or a value head."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits)
        self.inputs: dict[str, Any] = {}

    def forward(self, logits_to_keep: int = 0, **inputs: Any) -> SimpleNamespace:
        self.inputs = inputs
        return SimpleNamespace(logits=self.table[:, -logits_to_keep:])


def batch() -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Left-padded prompts of 1, 3, 4 tokens and right-padded responses of 5, 2, 1."""
    prompts, responses = [1, 3, 4], [5, 2, 1]
    columns = torch.arange(9)
    mask = torch.stack([(columns >= 4 - p) & (columns < 4 + r) for p, r in zip(prompts, responses, strict=True)])
    tokens = torch.randint(VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    return tokens, mask, prompts, responses


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_response_logprobs_come_from_the_position_before(temperature: float) -> None:
    tokens, mask, _, responses = batch()
    logits = torch.randn(3, 9, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    got = response_logprobs(Oracle(logits), tokens, mask, 5, temperature)
    assert got.logprobs.shape == got.entropy.shape == (3, 5)
    for i, length in enumerate(responses):
        for t in range(length):
            before = logits[i, 4 + t - 1].numpy()
            expected = reference.logprob(before, int(tokens[i, 4 + t]), temperature)
            assert float(got.logprobs[i, t].detach()) == pytest.approx(expected, abs=1e-5)
            assert float(got.entropy[i, t]) == pytest.approx(reference.entropy(before, temperature), abs=1e-5)


def test_response_values_come_from_the_position_before() -> None:
    tokens, mask, _, _ = batch()
    table = torch.arange(27.0).reshape(3, 9, 1)
    got = response_values(Oracle(table), tokens, mask, 5)
    assert got.tolist() == [[3, 4, 5, 6, 7], [12, 13, 14, 15, 16], [21, 22, 23, 24, 25]]


def test_models_see_the_mask_and_positions_that_padding_does_not_shift() -> None:
    tokens, mask, prompts, responses = batch()
    for of, width in ((response_logprobs, VOCABULARY), (response_values, 1)):
        oracle = Oracle(torch.zeros(3, 9, width))
        of(oracle, tokens, mask, 5, *([1.0] if of is response_logprobs else []))
        assert oracle.inputs["use_cache"] is False
        assert torch.equal(oracle.inputs["input_ids"], tokens)
        assert torch.equal(oracle.inputs["attention_mask"], mask)
        for i, (before, after) in enumerate(zip(prompts, responses, strict=True)):
            assert oracle.inputs["position_ids"][i][mask[i]].tolist() == list(range(before + after))


def test_position_ids_are_never_negative() -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, False, False]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]


def test_entropy_has_no_gradient_and_logprobs_have_the_right_one() -> None:
    """d log p(token) / d logit = [is token] - p, and only at the position before the token."""
    tokens, mask, _, _ = batch()
    oracle = Oracle(torch.randn(3, 9, VOCABULARY, generator=torch.Generator().manual_seed(0)))
    got = response_logprobs(oracle, tokens, mask, 5, temperature=2.0)
    assert not got.entropy.requires_grad
    got.logprobs[1, 1].backward()
    gradient = oracle.table.grad
    assert gradient is not None
    expected = (nn.functional.one_hot(tokens[1, 5], VOCABULARY) - (oracle.table[1, 4] / 2).softmax(-1)) / 2
    torch.testing.assert_close(gradient[1, 4], expected.detach())
    gradient[1, 4] = 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gather_is_the_definition_in_float32_or_wider(dtype: torch.dtype) -> None:
    logits = (torch.randn(2, 3, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    tokens = torch.tensor([[0, 5, 10], [3, 3, 3]])
    got = gather_logprobs(logits, tokens)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for place in np.ndindex(2, 3):
        expected = reference.logprob(logits[place].double().numpy(), int(tokens[place]))
        assert float(got[place]) == pytest.approx(expected, abs=1e-9 if dtype == torch.float64 else 2e-5)


def test_gather_stands_logits_that_would_overflow() -> None:
    logits = torch.tensor([[500.0, 0.0, -500.0, float("-inf")]])
    got = [float(gather_logprobs(logits, torch.tensor([token]))) for token in range(4)]
    assert got == [0.0, -500.0, -1000.0, float("-inf")]
