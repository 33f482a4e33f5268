from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.advantages import gae, grpo, rewards_to_go, rloo, whiten
from tests import reference

SMALL = settings(deadline=None, max_examples=40)
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32 - 1)
Groups = tuple[int, list[int]]  # responses to a prompt, and the length of every response
GROUPS = st.integers(2, 4).flatmap(
    lambda group: st.tuples(
        st.just(group),
        st.integers(1, 3).flatmap(
            lambda prompts: st.lists(st.integers(1, 7), min_size=group * prompts, max_size=group * prompts)
        ),
    )
)


def rows(lengths: list[int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0.5, 2.0, length) for length in lengths]


def tensors(ragged: list[np.ndarray], poison: float, width: int | None = None) -> tuple[Tensor, Tensor]:
    values, mask = reference.padded(ragged, poison, width)
    return torch.from_numpy(values), torch.from_numpy(mask)


@pytest.mark.parametrize("poison", reference.POISONS)
@given(LENGTHS, SEEDS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 3))
@SMALL
def test_gae_is_the_double_sum(poison, lengths, seed, gamma, lam, extra) -> None:  # type: ignore[no-untyped-def]
    rewards, values = rows(lengths, seed), rows(lengths, seed + 1)
    width = max(lengths) + extra
    padded, mask = tensors(rewards, poison, width)
    advantages, returns = gae(padded, tensors(values, -poison, width)[0], mask, gamma, lam)
    for i, length in enumerate(lengths):
        expected = reference.gae(rewards[i], values[i], gamma, lam)
        np.testing.assert_allclose(advantages[i, :length], expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(returns[i, :length], expected + values[i], rtol=1e-9, atol=1e-9)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


@pytest.mark.parametrize("poison", [*reference.POISONS, float("nan")])
@given(LENGTHS, SEEDS, st.floats(0, 1), st.integers(0, 3))
@SMALL
def test_rewards_to_go_are_the_sum(poison: float, lengths: list[int], seed: int, gamma: float, extra: int) -> None:
    rewards = rows(lengths, seed)
    padded, mask = tensors(rewards, poison, max(lengths) + extra)
    got = rewards_to_go(padded, mask, gamma)
    for i, row in enumerate(rewards):
        np.testing.assert_allclose(got[i, : len(row)], reference.rewards_to_go(row, gamma), rtol=1e-9, atol=1e-9)
    assert (got[~mask] == 0).all()


COMPARED = {"rloo": (rloo, reference.rloo), "grpo": (grpo, reference.grpo)}


@pytest.mark.parametrize("poison", [*reference.POISONS, float("nan")])
@pytest.mark.parametrize("name", COMPARED)
@given(GROUPS, SEEDS)
@SMALL
def test_responses_are_compared_within_their_group(name: str, poison: float, groups: Groups, seed: int) -> None:
    group, lengths = groups
    rewards = rows(lengths, seed)
    padded, mask = tensors(rewards, poison)
    ours, definition = COMPARED[name]
    got = ours(padded, mask, group)
    for row, expected in zip(got, definition(rewards, group), strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-9, atol=1e-9)
    assert (got[~mask] == 0).all()


@given(GROUPS, SEEDS)
@SMALL
def test_leave_one_out_sums_to_zero_in_a_group(groups: Groups, seed: int) -> None:
    group, lengths = groups
    got = rloo(*tensors(rows(lengths, seed), 99.0), group)
    np.testing.assert_allclose(got[:, 0].view(-1, group).sum(-1), 0.0, atol=1e-9)


@given(GROUPS, SEEDS, st.floats(-5, 5), st.floats(0.2, 5))
@SMALL
def test_grpo_does_not_see_a_shift_or_a_scale_of_a_groups_rewards(
    groups: Groups, seed: int, shift: float, scale: float
) -> None:
    group, lengths = groups
    rewards = rows(lengths, seed)
    totals = np.array([row.sum() for row in rewards]).reshape(-1, group)
    assume(totals.std(-1).min() * min(scale, 1) > 0.01)  # or the 1e-6 beside the deviation would count
    moved = [np.append(row[:-1] * scale, row[-1] * scale + shift) for row in rewards]
    got, expected = (grpo(*tensors(each, 99.0), group) for each in (moved, rewards))
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=1e-6)


def test_responses_that_score_alike_teach_nothing() -> None:
    padded, mask = tensors([np.array([0.5, 1.0]), np.array([1.5])] * 2, 99.0)
    for compare in (rloo, grpo):
        assert (compare(padded, mask, 2) == 0).all()


@pytest.mark.parametrize("group", [3, 6, 7, 8, 10, 16])
@pytest.mark.parametrize("compare", [rloo, grpo])
def test_scores_that_float32_rounds_teach_nothing_either(compare: Callable[..., Tensor], group: int) -> None:
    """Their mean in float32 is not they themselves, and the deviation is a rest of rounding as well."""
    scores = torch.linspace(-12, 12, 301) / 3
    rewards = scores[:, None].expand(-1, group).reshape(-1, 1)
    assert (compare(rewards, torch.ones_like(rewards, dtype=torch.bool), group) == 0).all()


def test_without_discount_a_return_is_the_sum_of_what_follows() -> None:
    rewards, values = rows([6], 0), rows([6], 1)
    mask = torch.ones(1, 6, dtype=torch.bool)
    _, returns = gae(torch.from_numpy(rewards[0])[None], torch.from_numpy(values[0])[None], mask, 1.0, 1.0)
    np.testing.assert_allclose(returns[0], [rewards[0][t:].sum() for t in range(6)], rtol=1e-12)


def test_gae_takes_nan_as_padding_and_leaves_its_inputs() -> None:
    padded, mask = tensors(rows([2, 4], 0), float("nan"))
    before = padded.clone()
    advantages, returns = gae(padded, padded, mask, 0.99, 0.95)
    assert torch.isfinite(advantages).all() and torch.isfinite(returns).all()
    torch.testing.assert_close(padded, before, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("poison", [*reference.POISONS, float("nan")])
@given(LENGTHS.filter(lambda lengths: sum(lengths) > 1), SEEDS, st.booleans(), st.booleans())
@SMALL
def test_whiten_is_the_definition(poison: float, lengths: list[int], seed: int, shift: bool, scale: bool) -> None:
    ragged = rows(lengths, seed)
    padded, mask = tensors(ragged, poison, max(lengths) + 2)
    got = whiten(padded, mask, shift=shift, scale=scale)
    for row, expected in zip(got, reference.whiten(ragged, shift, scale), strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-8, atol=1e-8)
    assert (got[~mask] == 0).all()


@given(LENGTHS, SEEDS, st.randoms(use_true_random=False))
@SMALL
def test_row_order_does_not_matter(lengths, seed, order) -> None:  # type: ignore[no-untyped-def]
    padded, mask = tensors(rows(lengths, seed), 99.0)
    permuted = list(range(len(lengths)))
    order.shuffle(permuted)
    torch.testing.assert_close(whiten(padded, mask)[permuted], whiten(padded[permuted], mask[permuted]))
    whole, cut = gae(padded, padded, mask, 0.9, 0.8), gae(padded[permuted], padded[permuted], mask[permuted], 0.9, 0.8)
    torch.testing.assert_close([part[permuted] for part in whole], list(cut), rtol=0, atol=0)


def test_whiten_survives_a_far_mean_in_float32() -> None:
    """A sum of squares in float32 would lose everything here."""
    x = torch.tensor([[10_000.0, 10_001.0, 10_002.0]])
    got = whiten(x, torch.ones_like(x, dtype=torch.bool))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, [[-1.0, 0.0, 1.0]], atol=1e-6)


@pytest.mark.parametrize("x", [[[7.0, 99.0]], [[7.0, 7.0]], [[7.0, 7.0], [7.0, 99.0]]])
def test_without_spread_only_the_mean_is_taken_off(x: list[list[float]]) -> None:
    padded = torch.tensor(x)
    assert (whiten(padded, padded == 7.0) == 0).all()
