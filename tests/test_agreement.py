"""Agreement: alpha against published examples and its definition pair by pair, and what its intervals cover."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.analysis.agreement import agreement, nominal_alpha, tallied

# Rows are annotators, a dot is no vote. Krippendorff 2011, sections A, B and C; the last is in Wikipedia's article.
PUBLISHED = {
    ("0100000010", "1110010000"): 0.095,
    ("aabbdcccedda", "babbbccceddd"): 0.692,
    ("123321412...", "1233224125.3", ".3332342251.", "12332441251."): 0.743,
    (".....34121133.3", "1.213343.......", "..21344.21133.4"): 0.691,
}


def votes_of(rows: Sequence[str]) -> list[tuple[int, str]]:
    return [(unit, value) for row in rows for unit, value in enumerate(row) if value != "."]


def alpha_by_definition(votes: Sequence[tuple[int, str]]) -> float | None:
    """Every ordered pair of votes on a unit counts 1 / (votes on the unit - 1); every pair at all, once."""
    units: dict[int, list[str]] = {}
    for unit, value in votes:
        units.setdefault(unit, []).append(value)
    paired = [values for values in units.values() if len(values) > 1]
    every = [value for values in paired for value in values]
    differing = [a != b for a, b in itertools.permutations(every, 2)]
    if not any(differing):
        return None
    observed = sum(
        sum(a != b for a, b in itertools.permutations(values, 2)) / (len(values) - 1) for values in paired
    ) / len(every)
    return 1 - observed / (sum(differing) / len(differing))


@pytest.mark.parametrize(("rows", "expected"), PUBLISHED.items())
def test_alpha_is_the_published_one(rows: tuple[str, ...], expected: float) -> None:
    assert nominal_alpha(tallied(votes_of(rows))) == pytest.approx(expected, abs=5e-4)


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abc")), max_size=30))
def test_alpha_is_that_of_the_definition(votes: list[tuple[int, str]]) -> None:
    expected = alpha_by_definition(votes)
    found = nominal_alpha(tallied(votes))
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_units_with_one_vote_count_for_nothing() -> None:
    votes = votes_of(("ababba", "abbbba"))
    assert agreement(tallied([*votes, *((unit, "c") for unit in range(10, 90))])) == agreement(
        np.pad(tallied(votes), ((0, 0), (0, 1)))
    )


def test_where_nothing_is_shared_there_is_no_agreement() -> None:
    assert agreement(tallied([])) is None
    assert agreement(tallied([(1, "a"), (2, "b")])) is None


def test_where_all_say_the_same_alpha_says_nothing() -> None:
    found = agreement(tallied(votes_of(("aaaa", "aaaa"))))
    assert found is not None and (found.share, found.alpha, found.alpha_ci) == (1.0, None, None)


def test_the_share_is_that_of_pairs_of_votes() -> None:
    found = agreement(tallied(votes_of(("aab", "aba", "aa."))))
    assert found is not None and (found.units, found.votes) == (3, 8)
    assert found.share == pytest.approx((3 + 1 + 0) / (3 + 3 + 1))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Two annotators who are right with 0.8 each, on even labels: they agree with 0.68, and alpha is 0.36."""
    generator = np.random.default_rng(0)
    held = np.zeros(2)
    for seed in range(200):
        truth = generator.random(150) < 0.5
        seen = [np.where(generator.random(150) < 0.8, truth, ~truth) for _ in range(2)]
        ones = seen[0].astype(np.int64) + seen[1]
        found = agreement(np.stack([2 - ones, ones], axis=1), seed, resamples=400)
        assert found is not None and found.alpha_ci is not None
        held += [low <= value <= high for (low, high), value in ((found.share_ci, 0.68), (found.alpha_ci, 0.36))]
    assert (held >= 180).all() and (held <= 199).all(), held
