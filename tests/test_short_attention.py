"""Attention written out is torch's, forward and backward: of short sequences, of long ones, and of both in one row."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlhf.packing import attend, pack
from rlhf.short_attention import SHORT, is_short

HEADS, WIDTH = 6, 16
ATOL = {torch.float32: 5e-6, torch.float64: 1e-13, torch.bfloat16: 0.03}


def alone(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scaling: float | None) -> Tensor:
    """Each sequence by itself, by torch; [1, heads, tokens, width] to [1, tokens, heads, width]."""
    parts = [
        scaled_dot_product_attention(
            *(part[:, :, begin:end] for part in (query, key, value)), is_causal=True, scale=scaling, enable_gqa=True
        )
        for begin, end in pairwise([0, *accumulate(lengths)])
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


@pytest.mark.parametrize("kind", ATOL, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    "lengths",
    [
        [7, 7, 7],
        [1],
        [0, 2, 0],
        [3, 9, 20, 22, 24, 7],
        [SHORT],
        [SHORT + 1, SHORT + 9],
        [SHORT + 30, 12, 14, SHORT + 40, 3],
    ],
    ids=["alike", "one token", "empty", "mixed", "the longest", "longer", "short and long"],
)
def test_it_is_torchs(lengths: list[int], groups: int, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    real, added = sum(lengths), 5
    packing = pack(lengths, torch.device("cpu"), added)
    short = [is_short(block, torch.device("cpu")) for block in packing.blocks if block.width]
    assert any(short) == (min(lengths) <= SHORT) and all(short) == (max(lengths) <= SHORT)
    # Laid out as a projection gives them: heads of a token one behind the other.
    parts = [torch.randn(1, real + added, n, WIDTH, dtype=kind).transpose(1, 2) for n in (HEADS, groups, groups)]
    query, key, value = (part.requires_grad_() for part in parts)
    upstream = torch.randn(1, real, HEADS, WIDTH, dtype=kind)
    found = attend(query, key, value, 0.2, packing)
    wanted = alone(query, key, value, lengths, 0.2)
    assert found.dtype == kind and not found[:, real:].any()
    torch.testing.assert_close(found[:, :real], wanted, atol=ATOL[kind], rtol=0)
    for given, expected in zip(
        torch.autograd.grad(found[:, :real], parts, upstream), torch.autograd.grad(wanted, parts, upstream), strict=True
    ):
        assert given.dtype == kind and not given[:, :, real:].any()
        torch.testing.assert_close(given, expected, atol=4 * ATOL[kind], rtol=0)


def test_what_a_sequence_sees_ends_with_it() -> None:
    """Neither a later token nor another sequence changes what a token gets, nor whatever stands behind the last one."""
    torch.manual_seed(0)
    lengths = [5, 6, 4]
    packing = pack(lengths, torch.device("cpu"), 3)
    query, key, value = (torch.randn(1, 2, 18, WIDTH) for _ in range(3))
    before = attend(query, key, value, None, packing)
    key[:, :, 8:], value[:, :, 8:] = torch.inf, 1e3  # from the fourth token of the second sequence
    key[:, :, 15:], value[:, :, 15:] = torch.nan, torch.nan
    after = attend(query, key, value, None, packing)
    assert torch.equal(after[:, :8], before[:, :8]) and not after[:, 15:].any()
    assert not torch.isclose(after[:, 8:15], before[:, 8:15]).all(-1).any()


def test_values_may_have_a_width_of_their_own() -> None:
    torch.manual_seed(0)
    lengths = [4, 5]
    packing = pack(lengths, torch.device("cpu"))
    parts = [torch.randn(1, 2, 9, width, requires_grad=True) for width in (WIDTH, WIDTH, WIDTH // 2)]
    found, wanted = attend(*parts, None, packing), alone(*parts, lengths, None)
    torch.testing.assert_close(found, wanted, atol=5e-6, rtol=0)
    of_found, of_wanted = (torch.autograd.grad(each.square().sum(), parts) for each in (found, wanted))
    for given, expected in zip(of_found, of_wanted, strict=True):
        torch.testing.assert_close(given, expected, atol=2e-5, rtol=0)


def test_autocast_rounds_only_what_comes_out() -> None:
    torch.manual_seed(0)
    packing = pack([9, 8, 9], torch.device("cpu"))
    parts = [torch.randn(1, 2, 26, WIDTH, requires_grad=True) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*parts, None, packing)
        of_found = torch.autograd.grad(found.float().sum(), parts, retain_graph=True)
    exact = attend(*parts, None, packing)
    assert torch.equal(found, exact.to(torch.bfloat16))
    for given, wanted in zip(of_found, torch.autograd.grad(exact.sum(), parts), strict=True):
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)
