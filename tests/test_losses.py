from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.kl import Estimator
from rlhf.losses import kl_loss, ppo_policy_loss, ppo_value_loss
from tests import reference

CLIP = 0.2
# Ways of the policy's loss; weights None: the fourth figure of each token.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "asymmetric": {"clip_high": 0.4},
    "sequence": {"ratio": "sequence"},
    "weighted": {"weights": None},
    "all": {"clip_high": 0.05, "ratio": "sequence", "weights": None},
}
BATCHES = {"lengths": st.lists(st.integers(1, 7), min_size=1, max_size=6), "seed": st.integers(0, 2**32 - 1)}
SMALL = settings(deadline=None, max_examples=40)


class Ragged(NamedTuple):
    """Four figures of each token, as rows and as what the losses take."""

    rows: tuple[list[np.ndarray], ...]
    tensors: tuple[Tensor, ...]
    mask: Tensor


def ragged(lengths: list[int], seed: int, poison: float = 99.0, width: int | None = None) -> Ragged:
    """Standard deviations of 0.3, so that about half of the ratios and values are clipped."""
    rng = np.random.default_rng(seed)
    rows = tuple([rng.normal(0, 0.3, length) - shift for length in lengths] for shift in (2.0, 2.0, 0.0, 0.0))
    tensors = tuple(torch.from_numpy(reference.padded(part, poison, width)[0]) for part in rows)
    return Ragged(rows, tensors, torch.from_numpy(reference.padded(rows[0], poison, width)[1]))


def figures(loss: tuple[Tensor, ...]) -> list[float]:
    return [float(part.detach()) for part in loss]


def assert_same(got: Sequence[float] | np.ndarray, expected: Sequence[float]) -> None:
    """The losses to float64's rounding; clip fractions are counts divided in float32."""
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-12)


def both(kind: str, batch: Ragged) -> tuple[Any, tuple[float, float, float]]:
    """A way of the policy's loss, and the definition's figures; whole responses moved for a sequence ratio."""
    options, rows, tensors = dict(KINDS[kind]), list(batch.rows[:3]), list(batch.tensors[:3])
    defined = dict(options)
    if options.get("ratio") == "sequence":
        lift = np.linspace(-0.4, 0.4, len(rows[0]))  # a whole response likelier or less likely
        rows[0] = [row + by for row, by in zip(rows[0], lift, strict=True)]
        tensors[0] = tensors[0] + torch.from_numpy(lift)[:, None]
    if "weights" in options:
        options["weights"], defined["weights"] = batch.tensors[3].exp(), [np.exp(row) for row in batch.rows[3]]
    tokens = sum(map(len, rows[0]))
    got = ppo_policy_loss(*tensors, batch.mask, CLIP, tokens, **options)
    return got, reference.policy_loss(*rows, CLIP, **defined)


@pytest.mark.parametrize("poison", reference.POISONS)
@pytest.mark.parametrize("kind", KINDS)
@given(**BATCHES)
@SMALL
def test_policy_loss_is_the_definition(kind: str, poison: float, lengths: list[int], seed: int) -> None:
    got, expected = both(kind, ragged(lengths, seed, poison, width=9))
    assert_same(figures(got), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_each_way_clips_something_and_not_all(kind: str) -> None:
    """Or the comparison with the definition would show little."""
    got, (_, clipped, _) = both(kind, ragged([5, 3, 7, 1, 6, 4], 0))
    assert 0.05 < clipped < 0.95


@pytest.mark.parametrize("poison", reference.POISONS)
@pytest.mark.parametrize("clip", [CLIP, None])
@given(**BATCHES)
@SMALL
def test_value_loss_is_the_definition(clip: float | None, poison: float, lengths: list[int], seed: int) -> None:
    batch = ragged(lengths, seed, poison, width=9)
    values, old_values, returns = (part + 2.0 for part in batch.tensors[:3])
    got = ppo_value_loss(values, old_values, returns, batch.mask, clip, sum(lengths))
    expected = reference.value_loss(*([row + 2.0 for row in part] for part in batch.rows[:3]), clip)
    assert_same(figures(got), expected)


@pytest.mark.parametrize("poison", [*reference.POISONS, float("nan")])
@pytest.mark.parametrize("kind", ["k2", "k3"])
@given(**BATCHES)
@SMALL
def test_kl_loss_is_the_mean_over_tokens(kind: Estimator, poison: float, lengths: list[int], seed: int) -> None:
    batch = ragged(lengths, seed, poison, width=9)
    got = kl_loss(*batch.tensors[:2], batch.mask, kind, sum(lengths))
    np.testing.assert_allclose(float(got), reference.kl_loss(*batch.rows[:2], kind), rtol=1e-9)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_padding_that_is_all_but_impossible_has_no_gradient(kind: Estimator) -> None:
    """Its reference counts 0 where the policy says -100: e to that is infinite in float32."""
    logprobs = torch.tensor([[-1.0, -100.0]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    loss = kl_loss(logprobs, torch.tensor([[-1.2, 0.0]]), mask, kind, 1)
    loss.backward()
    assert torch.isfinite(loss) and logprobs.grad is not None
    assert float(logprobs.grad[0, 0]) > 0 and float(logprobs.grad[0, 1]) == 0


def test_gradient_of_a_sequence_ratio_is_each_tokens_own() -> None:
    """Zheng et al. 2025, eq. 15: the response's ratio times the token's score function."""
    batch = ragged([3, 1, 5], 0)
    logprobs, old, advantages = batch.tensors[:3]
    leaf = logprobs.clone().requires_grad_()
    ppo_policy_loss(leaf, old, advantages, batch.mask, 10.0, 9, ratio="sequence").loss.backward()
    for i, length in enumerate((3, 1, 5)):
        ratio = float((logprobs[i, :length] - old[i, :length]).mean().exp())
        torch.testing.assert_close(leaf.grad[i, :length], -advantages[i, :length] * ratio / 9)
    assert (leaf.grad[~batch.mask] == 0).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_not_even_nan_leaks_from_the_padding(poison: float) -> None:
    batch = ragged([3, 5], 0, poison)
    leaf = batch.tensors[0].clone().requires_grad_()
    for loss in (ppo_policy_loss, ppo_value_loss):
        got = loss(leaf, *batch.tensors[1:3], batch.mask, CLIP, 8)
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
    sums = np.zeros(len(figures(loss(*whole.tensors[:3], whole.mask, CLIP, sum(lengths)))))
    for part in parts:
        width = max(lengths[i] for i in part)  # trimmed, as the update trims
        tensors = [tensor[part, :width] for tensor in whole.tensors[:3]]
        sums += figures(loss(*tensors, whole.mask[part, :width], CLIP, sum(lengths)))
    assert_same(sums, figures(loss(*whole.tensors[:3], whole.mask, CLIP, sum(lengths))))


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
    logprobs, _, advantages = batch.tensors[:3]
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
    values, _, returns = batch.tensors[:3]
    leaf = values.clone().requires_grad_()
    ppo_value_loss(leaf, values, returns, batch.mask, CLIP, 9).loss.backward()
    torch.testing.assert_close(leaf.grad, torch.where(batch.mask, (values - returns) / 9, 0.0), rtol=1e-12, atol=0)
