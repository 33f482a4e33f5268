"""Whether the means of two groups of votes differ, by permutations that leave each prompt's votes together.

Votes on one prompt are alike, so what is exchanged is all votes of a prompt in a group. Of a prompt in both groups its
two lots change places or not; the others are dealt out anew. The difference is divided by its standard error, so that
groups of unequal spread do not pass for unequal means (Chung & Romano 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.annotators.tables import Floats, Integers
from rlhf.analysis.statistics import Z_95, wilson_interval

ENOUGH_HITS = 20  # permutations as extreme, after which a test ends (Besag & Clifford 1991)
AT_ONCE, CELLS = 500, 2_000_000  # permutations, and numbers, held at once
COUNT, SUM, SUM_SQUARED, SUM_COUNT, COUNT_SQUARED = range(5)


@dataclass(frozen=True)
class Lots:
    """Sums over lots of votes that stay together; equal index, equal lot."""

    count: Floats
    sum: Floats

    @classmethod
    def of(cls, values: Floats, group: Integers) -> Lots:
        """The lots of values [votes], by their numbers [votes]."""
        _, number = np.unique(group, return_inverse=True)
        return cls(np.bincount(number).astype(float), np.bincount(number, values).astype(float))

    @property
    def mean(self) -> float:
        """Over votes."""
        return float(self.sum.sum() / max(1.0, self.count.sum()))

    @property
    def error(self) -> float:
        """The mean's standard error, lots being independent."""
        rest = self.sum - self.mean * self.count
        return float(np.sqrt((rest**2).sum()) / max(1.0, self.count.sum()))

    def share_interval(self) -> tuple[float, float]:
        """95 % interval of a share: Wilson's, of as many independent votes as would have this error (Kish 1965)."""
        share, votes = self.mean, self.count.sum()
        independent = share * (1 - share) / self.error**2 if self.error > 0 else len(self.count)
        trials = max(1, round(min(votes, independent)))
        return wilson_interval(share * trials, trials)

    def mean_interval(self) -> tuple[float, float]:
        """95 % interval of the mean, by the normal distribution."""
        return self.mean - Z_95 * self.error, self.mean + Z_95 * self.error

    def moments(self) -> Floats:
        """[lots, 5]: what sums over any choice of lots need."""
        columns = [self.count, self.sum, self.sum**2, self.sum * self.count, self.count**2]
        return np.stack(columns, axis=1)


def difference_p(values: Floats, prompt: Integers, after: NDArray[np.bool_], most: int, seed: int = 0) -> float:
    """Two-sided p-value of the difference of means between votes after and before; arrays [votes].

    most: permutations at most. Of equal values nothing can differ: 1.
    """
    lot = prompt * 2 + after
    known, lots = np.unique(lot), Lots.of(values, lot)
    moments, second = lots.moments(), known % 2 == 1
    _, place, times = np.unique(known // 2, return_inverse=True, return_counts=True)
    shared = times[place] == 2
    firsts, seconds = moments[shared & ~second], moments[shared & second]  # both in the order of prompts
    alone, dealt = moments[~shared], second[~shared]
    total = moments.sum(axis=0)

    def chosen(draw: np.random.Generator, times: int) -> Floats:
        keys = draw.random((times, len(alone)))
        number = int(dealt.sum())
        mask = np.zeros(keys.shape)
        if number:
            np.put_along_axis(mask, np.argpartition(keys, number - 1, axis=1)[:, :number], 1.0, axis=1)
        swapped = draw.random((times, len(firsts))) < 0.5
        made: Floats = mask @ alone + seconds.sum(axis=0) + swapped @ (firsts - seconds)
        return made

    observed = abs(_studentised(moments[second].sum(axis=0)[None], total)[0])
    width = max(1, len(alone) + len(firsts))

    def extremes() -> Iterator[NDArray[np.bool_]]:
        draw, left = np.random.default_rng(seed), most
        while left:
            times = min(left, AT_ONCE, max(1, CELLS // width))
            left -= times
            yield np.abs(_studentised(chosen(draw, times), total)) >= observed - 1e-9

    return p_of(extremes) if observed > 0 else 1.0


def _studentised(of_after: Floats, total: Floats) -> Floats:
    """[permutations]: difference of means by its standard error, given the moments [permutations, 5] of one group."""
    of_before = total - of_after
    means, variances = [], []
    for moments in (of_after, of_before):
        count = np.maximum(moments[:, COUNT], 1.0)
        mean = moments[:, SUM] / count
        rest = moments[:, SUM_SQUARED] - 2 * mean * moments[:, SUM_COUNT] + mean**2 * moments[:, COUNT_SQUARED]
        means.append(mean)
        variances.append(np.maximum(rest, 0.0) / count**2)
    difference = means[0] - means[1]
    error = np.sqrt(variances[0] + variances[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        studentised: Floats = np.where(np.abs(difference) < 1e-12, 0.0, difference / np.maximum(error, 1e-12))
    return studentised


def p_of(extremes: Callable[[], Iterator[NDArray[np.bool_]]]) -> float:
    """The p-value, given for each permutation whether it was as extreme as what was seen."""
    hits = drawn = 0
    for extreme in extremes():
        before, hits = hits, hits + int(extreme.sum())
        if hits >= ENOUGH_HITS:
            last = int(np.flatnonzero(extreme)[ENOUGH_HITS - before - 1])
            return ENOUGH_HITS / (drawn + last + 1)
        drawn += len(extreme)
    return (hits + 1) / (drawn + 1)


def holm(p: list[float]) -> list[float]:
    """P-values adjusted for their number, so that one of all falls below a level by chance as often (Holm 1979)."""
    adjusted, least = [0.0] * len(p), 0.0
    for rank, number in enumerate(np.argsort(p, kind="stable").tolist()):
        least = max(least, min(1.0, (len(p) - rank) * p[number]))
        adjusted[number] = least
    return adjusted
