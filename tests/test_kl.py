from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.kl import AdaptiveController, FixedController, estimate
from tests import reference

LOGPROBS = st.lists(st.tuples(st.floats(-12, 0), st.floats(-12, 0)), min_size=1, max_size=8)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
@given(pairs=LOGPROBS)
@settings(deadline=None, max_examples=50)
def test_each_token_is_the_definition(kind: Literal["k1", "k2", "k3"], pairs: list[tuple[float, float]]) -> None:
    logprobs, ref_logprobs = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    expected = [reference.kl(*pair, kind) for pair in pairs]
    got = estimate(logprobs[None], ref_logprobs[None], kind)
    np.testing.assert_allclose(got[0], expected, rtol=1e-7, atol=1e-9)


@given(pairs=LOGPROBS)
@settings(deadline=None, max_examples=50)
def test_k3_is_never_negative_and_k1_is(pairs: list[tuple[float, float]]) -> None:
    """In float32 too, where r - 1 - log r by itself would cancel below zero."""
    logprobs, ref_logprobs = torch.tensor(pairs).unbind(-1)
    assert (estimate(logprobs, ref_logprobs, "k3") >= 0).all()
    k1 = estimate(logprobs, ref_logprobs, "k1")
    assert ((k1 < 0) == (ref_logprobs > logprobs)).all()


def test_estimators_mean_the_divergence_of_policy_from_reference() -> None:
    """By Monte Carlo on four tokens, within four standard errors; the other direction is far outside of them."""
    policy, ref = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.2, 0.2, 0.4])
    truth, reverse = float((policy * np.log(policy / ref)).sum()), float((ref * np.log(ref / policy)).sum())
    tokens = np.random.default_rng(0).choice(4, size=200_000, p=policy)
    logprobs, ref_logprobs = (torch.from_numpy(np.log(p)[tokens]) for p in (policy, ref))
    for kind in ("k1", "k3"):
        samples = estimate(logprobs, ref_logprobs, kind)  # type: ignore[arg-type]
        error = 4 * float(samples.std()) / len(tokens) ** 0.5
        assert abs(float(samples.mean()) - truth) < error
        assert error < abs(truth - reverse) / 4


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="use k1, k2 or k3"):
        estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_fixed_controller_stays() -> None:
    controller = FixedController(0.05)
    controller.update(100.0, 64)
    assert controller.coef == 0.05
    restored = FixedController(1.0)
    restored.load_state_dict(controller.state_dict())
    assert restored.coef == 0.05


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1 + 0.1 * 0.01), (5.4, 1 - 0.1 * 0.01), (600.0, 1 + 0.2 * 0.01), (0.0, 1 - 0.2 * 0.01)],
    ids=["on target", "over", "under", "far over is clipped", "far under is clipped"],
)
def test_adaptive_controller_steps_towards_its_target(kl: float, factor: float) -> None:
    controller = AdaptiveController(0.05, target=6.0, horizon=10_000)
    controller.update(kl, 100)
    assert controller.coef == pytest.approx(0.05 * factor, rel=1e-12)


def test_adaptive_controller_holds_a_process_at_its_target() -> None:
    """A divergence that falls as the coefficient rises settles at the target."""
    controller = AdaptiveController(1.0, target=2.0, horizon=100)
    for _ in range(2000):
        controller.update(1.0 / controller.coef, 10)
    assert controller.coef == pytest.approx(0.5, rel=0.01)


def test_adaptive_controller_resumes_where_it_was() -> None:
    controller = AdaptiveController(0.05, target=6.0, horizon=1000)
    controller.update(9.0, 64)
    restored = AdaptiveController(1.0, target=6.0, horizon=1000)
    restored.load_state_dict(controller.state_dict())
    for each in (controller, restored):
        each.update(3.0, 64)
    assert restored.coef == controller.coef != 0.05


@pytest.mark.parametrize("horizon", [1, 10, 10_000])
def test_adaptive_coefficient_stays_positive(horizon: int) -> None:
    """A penalty that turns into a reward for leaving the reference would never come back."""
    controller = AdaptiveController(0.05, target=6.0, horizon=horizon)
    controller.update(0.0, 64)
    assert controller.coef > 0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 300)), min_size=1, max_size=6), st.floats(0.5, 10))
@settings(deadline=None, max_examples=50)
def test_adaptive_controller_is_the_definition(steps: list[tuple[float, int]], target: float) -> None:
    controller, found = AdaptiveController(0.05, target, horizon=100), []
    for step in steps:
        controller.update(*step)
        found.append(controller.coef)
    np.testing.assert_allclose(found, reference.adaptive_coefficients(0.05, steps, target, 100), rtol=1e-9)
