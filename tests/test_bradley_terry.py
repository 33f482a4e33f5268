import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.losses import bradley_terry_loss
from tests import reference

SMALL = settings(deadline=None, max_examples=40)
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
