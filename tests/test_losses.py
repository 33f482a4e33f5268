from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.losses import bradley_terry_loss, ppo_policy_loss, ppo_value_loss
from tests import reference

CLIP = 0.2
BATCHES = {"lengths": st.lists(st.integers(1, 7), min_size=1, max_size=6), "seed": st.integers(0, 2**32 - 1)}
SMALL = settings(deadline=None, max_examples=40)


class Ragged(NamedTuple):
    """Three figures of each token, as rows and as what the losses take."""

    rows: tuple[list[np.ndarray], ...]
    tensors: tuple[Tensor, ...]
    mask: Tensor


def ragged(lengths: list[int], seed: int, poison: float = 99.0, width: int | None = None) -> Ragged:
    """Standard deviations of 0.3, so that about half of the ratios and values are clipped."""
    rng = np.random.default_rng(seed)
    rows = tuple([rng.normal(0, 0.3, length) - shift for length in lengths] for shift in (2.0, 2.0, 0.0))
    tensors = tuple(torch.from_numpy(reference.padded(part, poison, width)[0]) for part in rows)
    return Ragged(rows, tensors, torch.from_numpy(reference.padded(rows[0], poison, width)[1]))


def figures(loss: tuple[Tensor, ...]) -> list[float]:
    return [float(part.detach()) for part in loss]


def assert_same(got: Sequence[float] | np.ndarray, expected: Sequence[float]) -> None:
    """The losses to float64's rounding; clip fractions are counts divided in float32."""
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("poison", reference.POISONS)
@given(**BATCHES)
@SMALL
def test_policy_loss_is_the_definition(poison: float, lengths: list[int], seed: int) -> None:
    batch = ragged(lengths, seed, poison, width=9)
    got = ppo_policy_loss(*batch.tensors, batch.mask, CLIP, sum(lengths))
    assert_same(figures(got), reference.policy_loss(*batch.rows, CLIP))


@pytest.mark.parametrize("poison", reference.POISONS)
@given(**BATCHES)
@SMALL
def test_value_loss_is_the_definition(poison: float, lengths: list[int], seed: int) -> None:
    batch = ragged(lengths, seed, poison, width=9)
    values, old_values, returns = (part + 2.0 for part in batch.tensors)
    got = ppo_value_loss(values, old_values, returns, batch.mask, CLIP, sum(lengths))
    expected = reference.value_loss(*([row + 2.0 for row in part] for part in batch.rows), CLIP)
    assert_same(figures(got), expected)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_not_even_nan_leaks_from_the_padding(poison: float) -> None:
    batch = ragged([3, 5], 0, poison)
    leaf = batch.tensors[0].clone().requires_grad_()
    for loss in (ppo_policy_loss, ppo_value_loss):
        got = loss(leaf, *batch.tensors[1:], batch.mask, CLIP, 8)
        assert np.isfinite(figures(got)).all()
        (gradient,) = torch.autograd.grad(got.loss, leaf)
        assert (gradient[~batch.mask] == 0).all()
        assert (gradient[batch.mask] != 0).any()


@pytest.mark.parametrize("loss", [ppo_policy_loss, ppo_value_loss])
@given(**BATCHES, cut=st.integers(0, 6), order=st.randoms(use_true_random=False))
@SMALL
def test_micro_batches_add_up_in_any_order(loss, lengths, seed, cut, order) -> None:  # type: ignore[no-untyped-def]
    whole = ragged(lengths, seed)
    rows = list(range(len(lengths)))
    order.shuffle(rows)
    parts = [part for part in (rows[:cut], rows[cut:]) if part]
    sums = np.zeros(len(figures(loss(*whole.tensors, whole.mask, CLIP, sum(lengths)))))
    for part in parts:
        width = max(lengths[i] for i in part)  # trimmed, as the update trims
        tensors = [tensor[part, :width] for tensor in whole.tensors]
        sums += figures(loss(*tensors, whole.mask[part, :width], CLIP, sum(lengths)))
    assert_same(sums, figures(loss(*whole.tensors, whole.mask, CLIP, sum(lengths))))


@given(**BATCHES)
@SMALL
def test_first_update_is_on_policy(lengths: list[int], seed: int) -> None:
    batch = ragged(lengths, seed)
    advantages = batch.tensors[2]
    got = ppo_policy_loss(batch.tensors[0], batch.tensors[0], advantages, batch.mask, CLIP, sum(lengths))
    assert float(got.clip_fraction) == 0
    assert float(got.approx_kl) == 0
    assert float(got.loss) == pytest.approx(-float(advantages[batch.mask].sum()) / sum(lengths), abs=1e-12)


def test_policy_gradient_at_ratio_one_is_the_advantage() -> None:
    batch = ragged([3, 1, 5], 0)
    logprobs, _, advantages = batch.tensors
    leaf = logprobs.clone().requires_grad_()
    ppo_policy_loss(leaf, logprobs, advantages, batch.mask, CLIP, 9).loss.backward()
    expected = torch.where(batch.mask, -advantages / 9, 0.0)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "gradient"),
    [(0.5, 1.0, 0.0), (0.5, -1.0, np.exp(0.5)), (-0.5, -1.0, 0.0), (-0.5, 1.0, -np.exp(-0.5))],
    ids=["gained enough", "must come back down", "lost enough", "must come back up"],
)
def test_clipping_stops_only_the_gain(log_ratio: float, advantage: float, gradient: float) -> None:
    leaf = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    zero, mask = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    ppo_policy_loss(leaf, zero, torch.full_like(zero, advantage), mask, CLIP, 1).loss.backward()
    assert float(leaf.grad) == pytest.approx(gradient, abs=1e-12)


def test_value_gradient_is_the_error_within_the_clip() -> None:
    batch = ragged([3, 1, 5], 0)
    values, _, returns = batch.tensors
    leaf = values.clone().requires_grad_()
    ppo_value_loss(leaf, values, returns, batch.mask, CLIP, 9).loss.backward()
    torch.testing.assert_close(leaf.grad, torch.where(batch.mask, (values - returns) / 9, 0.0), rtol=1e-12, atol=0)


scores = st.floats(-8, 8)
probabilities = st.floats(0, 1)
votes = st.tuples(scores, scores, st.floats(-1, 1), st.floats(0, 3), probabilities)


@given(st.lists(votes, min_size=1, max_size=5), st.floats(0, 0.49))
@SMALL
def test_bradley_terry_is_the_cross_entropy_of_each_vote(pairs: list[tuple[float, ...]], smoothing: float) -> None:
    chosen, rejected, margin, weight, target = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    got = bradley_terry_loss(chosen, rejected, margin, smoothing, weight, target)
    expected = [reference.bradley_terry(c, r, m, smoothing, w, t) for c, r, m, w, t in pairs]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-7, atol=1e-9)


def test_bradley_terry_defaults_are_plain_votes() -> None:
    chosen, rejected = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    expected = [reference.bradley_terry(1.0, 0.5), reference.bradley_terry(-2.0, 3.0)]
    np.testing.assert_allclose(bradley_terry_loss(chosen, rejected).numpy(), expected, rtol=1e-9)


def test_bradley_terry_stays_finite_far_out() -> None:
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry_loss(far, torch.zeros(2))
    np.testing.assert_allclose(loss.detach().numpy(), [0.0, 1e4])
    loss.sum().backward()
    np.testing.assert_allclose(far.grad.numpy(), [0.0, -1.0])


@pytest.mark.parametrize(
    ("target", "smoothing", "odds"), [(0.5, 0.0, 1.0), (0.5, 0.3, 1.0), (0.8, 0.0, 4.0), (1.0, 0.1, 9.0)]
)
def test_minimum_is_where_the_odds_are_the_wanted_ones(target: float, smoothing: float, odds: float) -> None:
    """A tie wants equal scores; a smoothed vote odds of (1 - smoothing) / smoothing."""
    chosen = (np.log(odds) + torch.tensor([-0.3, 0.0, 0.3], dtype=torch.float64)).requires_grad_()
    losses = bradley_terry_loss(chosen, torch.zeros(3), None, smoothing, None, torch.full((3,), target).double())
    (slopes,) = torch.autograd.grad(losses.sum(), chosen)
    assert float(slopes[1]) == pytest.approx(0, abs=1e-7)
    assert float(losses.detach()[[0, 2]].min()) > float(losses.detach()[1]) + 0.001
