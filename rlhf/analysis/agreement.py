"""How far annotators agree who voted on the same: the share of equal votes, and Krippendorff's alpha.

Alpha is 1 where all agree, 0 where they agree as often as votes that were dealt out at random, below 0 where they agree
less (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", sections A to C). A unit, such as a pair of
responses, may have any number of votes; one with fewer than two says nothing and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Agreement:
    """Of the units that have two votes or more."""

    units: int
    votes: int
    share: float  # of all pairs of votes on one unit, those that are equal
    share_ci: tuple[float, float]  # 95 % interval over units
    alpha: float | None  # None where all votes are the same, so that there was nothing to agree on
    alpha_ci: tuple[float, float] | None  # 95 % interval over units


def tallied(votes: Iterable[tuple[Hashable, Hashable]]) -> NDArray[np.int64]:
    """[units, values]: how often each unit, the first of a vote's two, was given each value, the second."""
    units: dict[Hashable, int] = {}
    values: dict[Hashable, int] = {}
    cells = [(units.setdefault(unit, len(units)), values.setdefault(value, len(values))) for unit, value in votes]
    tallies = np.zeros((len(units), len(values)), np.int64)
    if cells:
        np.add.at(tallies, tuple(np.array(cells).T), 1)
    return tallies


def nominal_alpha(tallies: NDArray[np.int64]) -> float | None:
    """Krippendorff's alpha of values without order; tallies as `tallied` gives them. None where nothing can differ."""
    patterns, times = _patterns(tallies)
    if not len(patterns):
        return None
    alpha = float(_alphas(patterns, times[None])[0])
    return None if np.isnan(alpha) else alpha


def agreement(tallies: NDArray[np.int64], seed: int = 0, resamples: int = 2000) -> Agreement | None:
    """Share and alpha with percentile bootstrap intervals over units (Zapf et al. 2016); None without shared units.

    Resamples in which all votes are the same have no alpha and are left out of its interval.
    """
    patterns, times = _patterns(tallies)
    if not len(patterns):
        return None
    units = int(times.sum())
    # Units with equal tallies are exchangeable: a resample is told by how many of each pattern it drew.
    drawn = np.random.default_rng(seed).multinomial(units, times / units, size=resamples)
    alpha, alphas = nominal_alpha(tallies), _alphas(patterns, drawn)
    defined = alphas[~np.isnan(alphas)]
    return Agreement(
        units=units,
        votes=int(times @ patterns.sum(axis=1)),
        share=float(_shares(patterns, times[None])[0]),
        share_ci=_interval(_shares(patterns, drawn)),
        alpha=alpha,
        alpha_ci=None if alpha is None else _interval(defined),
    )


def _patterns(tallies: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different rows of units with two votes or more, [patterns, values], and how many units have each."""
    paired = tallies[tallies.sum(axis=1) >= 2]
    if not len(paired):
        return paired, np.zeros(0, np.int64)
    patterns, times = np.unique(paired, axis=0, return_counts=True)
    return patterns, times


def _alphas(patterns: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Alpha of each row of times [samples, patterns]; nan where all votes of a sample are the same.

    1 - observed / expected disagreement: of two votes on one unit, and of two votes on whatever unit.
    """
    sizes = patterns.sum(axis=1)
    observed = times @ ((sizes**2 - (patterns**2).sum(axis=1)) / (sizes - 1))
    totals = times @ patterns  # [samples, values]
    votes = totals.sum(axis=1).astype(np.float64)
    expected = votes**2 - (totals.astype(np.float64) ** 2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        alphas: NDArray[np.float64] = np.where(expected > 0, 1 - (votes - 1) * observed / expected, np.nan)
    return alphas


def _shares(patterns: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of all pairs of votes on one unit, the share that is equal, for each row of times [samples, patterns]."""
    sizes = patterns.sum(axis=1)
    equal = (patterns * (patterns - 1)).sum(axis=1)
    shares: NDArray[np.float64] = (times @ equal) / (times @ (sizes * (sizes - 1)))
    return shares


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
