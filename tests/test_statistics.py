import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reward_models.judging import calibration_error
from rlhf.analysis.statistics import bootstrap_interval, sign_test, wilson_interval, wins
from tests import reference


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3, and the next three
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@example((0, 27))
@example((27, 27))
@settings(deadline=None)
def test_wilson_is_the_definition_and_stays_within_zero_and_one(vote: tuple[int, int]) -> None:
    successes, trials = vote
    low, high = wilson_interval(successes, trials)
    assert (low, high) == pytest.approx(reference.wilson(successes, trials), abs=1e-6)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


def test_wilson_without_trials_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_contains_the_truth_about_as_often_as_it_says() -> None:
    successes = np.random.default_rng(0).binomial(50, 0.8, size=2000)
    intervals = [wilson_interval(int(count), 50) for count in successes]
    assert 0.93 < np.mean([low <= 0.8 <= high for low, high in intervals]) < 0.97


def test_bootstrap_contains_the_truth_about_as_often_as_it_says() -> None:
    samples = np.random.default_rng(0).exponential(1.0, size=(300, 60))
    intervals = [bootstrap_interval(sample.tolist(), seed=i, resamples=300) for i, sample in enumerate(samples)]
    assert 0.89 < np.mean([low <= 1.0 <= high for low, high in intervals]) < 0.98


def test_bootstrap_is_as_wide_as_theory_says_and_repeats() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400).tolist()
    low, high = bootstrap_interval(values, seed=0)
    mean, half = np.mean(values), 1.96 * np.std(values) / 400**0.5
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    assert bootstrap_interval(values, seed=0) == (low, high) != bootstrap_interval(values, seed=1)


def test_bootstrap_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval([2.0] * 5, seed=0) == (2.0, 2.0)


def test_wins_and_ties() -> None:
    assert wins([1.0, 0.0, 0.5, 0.3], [0.0, 1.0, 0.5, 0.3 + 1e-12]) == [1.0, 0.0, 0.5, 0.5]
    assert wins([0.5 + 1e-6], [0.5]) == [1.0]
    assert wins([0.5], [0.6], tolerance=0.2) == [0.5]
    with pytest.raises(ValueError, match="argument 2"):
        wins([1.0], [1.0, 2.0])


@given(st.lists(st.floats(-12, 12).filter(lambda x: abs(x) > 1e-3), min_size=1, max_size=60))
@settings(deadline=None)
def test_calibration_error_is_the_definition(differences: list[float]) -> None:
    got = calibration_error(torch.tensor(differences, dtype=torch.float64))
    assert got == pytest.approx(reference.calibration_error(differences), abs=1e-6)


def test_calibration_error_of_the_calibrated_and_of_the_boastful() -> None:
    """Votes drawn from the model's own odds are calibrated; ten times the odds are not."""
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 1.5, size=20_000)
    chosen_wins = rng.random(20_000) < 1 / (1 + np.exp(-odds))
    differences = torch.from_numpy(np.where(chosen_wins, odds, -odds))
    assert calibration_error(differences) < 0.02
    assert calibration_error(differences * 10) > 0.15


def test_bootstrap_of_whole_groups_is_as_wide_as_theory_says() -> None:
    """Each value four times: as wide as that of the values themselves, where single ones would look half as wide."""
    values = np.random.default_rng(2).normal(size=200).tolist()
    repeated, groups = [*values, *values, *values, *values], [*range(200)] * 4
    low, high = bootstrap_interval(values, seed=0)
    assert bootstrap_interval(repeated, seed=0, groups=groups) == pytest.approx((low, high))
    alone = bootstrap_interval(repeated, seed=0)
    assert (alone[1] - alone[0]) / (high - low) == pytest.approx(0.5, abs=0.05)


def test_bootstrap_of_unequal_groups_weighs_values_alike() -> None:
    values, groups = (
        [1.0] * 300 + [0.0] * 100,
        [f"prompt {i}" for i in range(300)] + [f"prompt {i}" for i in range(100)],
    )
    low, high = bootstrap_interval(values, seed=0, groups=groups)
    assert low < 0.75 < high and bootstrap_interval(values, seed=0, groups=list(range(400))) == pytest.approx(
        bootstrap_interval(values, seed=0)
    )


@given(st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(deadline=None)
def test_the_sign_test_is_the_sum_of_what_is_as_rare(vote: tuple[int, int]) -> None:
    successes, trials = vote
    off = abs(2 * successes - trials)
    expected = sum(math.comb(trials, k) for k in range(trials + 1) if abs(2 * k - trials) >= off) / 2**trials
    assert sign_test(successes, trials) == pytest.approx(expected, rel=1e-9)


def test_the_sign_test_of_very_many_ends() -> None:
    assert sign_test(500_000, 1_000_000) == 1.0
    assert sign_test(501_288, 1_000_000) == pytest.approx(0.01, rel=0.01)  # 2.576 standard deviations
    assert sign_test(900_000, 1_000_000) == 0.0
