"""Intervals for what is measured on samples."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of independent values; 0 for a single one, which says nothing of its spread."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1) / len(values))


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    spread = Z_95**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding may step over the ends


def bootstrap_interval(
    values: Sequence[float], seed: int, resamples: int = 2000, groups: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron 1979).

    groups: which unit each value belongs to, such as its prompt: whole units are drawn, with all their values, for
    values of one unit tell less than as many units would (Davison & Hinkley 1997, section 3.8). None: each its own.
    """
    units = list(range(len(values)) if groups is None else groups)
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    sums, counts = np.zeros(len(numbers)), np.zeros(len(numbers))
    for unit, value in zip(units, values, strict=True):
        sums[numbers[unit]] += value
        counts[numbers[unit]] += 1
    picks = np.random.default_rng(seed).integers(0, len(numbers), size=(resamples, len(numbers)))
    low, high = np.quantile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def wins(after: Sequence[float], before: Sequence[float], tolerance: float = 1e-9) -> list[float]:
    """Per pair: 1 where `after` scores higher, 0 where lower, 0.5 where they are equal within `tolerance`."""
    return [0.5 if abs(a - b) <= tolerance else float(a > b) for a, b in zip(after, before, strict=True)]


def sign_test(successes: int, trials: int) -> float:
    """Two-sided p-value of a share against one half, by the binomial distribution itself; 1 without trials."""
    more = max(successes, trials - successes)
    if trials == 0 or 2 * more == trials:
        return 1.0
    term = math.exp(
        math.lgamma(trials + 1) - math.lgamma(more + 1) - math.lgamma(trials - more + 1) - trials * math.log(2)
    )
    tail = 0.0
    for count in range(more, trials + 1):
        tail += term
        term *= (trials - count) / (count + 1)
        if term < 1e-17 * tail:
            break
    return min(1.0, 2 * tail)
