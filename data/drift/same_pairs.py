"""On pairs voted on in both groups: how often a vote after says what a vote before does.

That is compared with how often votes of one group agree. Which of a pair's votes are those after is permuted within the
pair, so pairs may be as hard as they like. Of two votes on a pair, one in each group, nothing can be tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.annotators.tables import Floats, Integers
from data.drift.permutation import Lots, p_of


@dataclass(frozen=True)
class SamePairs:
    """Votes on pairs that both groups voted on."""

    within: Lots | None  # equal ones of two votes of one group, by pairs; None where no group has two on a pair
    between: Lots  # equal ones of a vote of each
    p: float | None  # one-sided: whether they agree less between than within


def compare(pair: Integers, answer: Integers, after: NDArray[np.bool_], most: int, seed: int = 0) -> SamePairs | None:
    """Compare; arrays [votes], answers from 0. None where there is no such pair."""
    _, number = np.unique(pair, return_inverse=True)
    both = (np.bincount(number, after) > 0) & (np.bincount(number, ~after) > 0)
    kept = both[number]
    if not kept.any():
        return None
    _, number = np.unique(number[kept], return_inverse=True)
    answer, after = answer[kept], after[kept]
    tallies = _Tallies(number, answer)
    equal, of, same, among = tallies.agreement(after)
    between = Lots(of, equal)
    told = among > 0
    if not told.any():
        return SamePairs(None, between, None)
    within = Lots(among[told], same[told])
    many = np.bincount(number) > 2  # the others say the same, however their votes are exchanged
    rows = many[number]
    if not rows.any():
        return SamePairs(within, between, None)
    fewer = _Tallies(np.unique(number[rows], return_inverse=True)[1], answer[rows])
    observed = fewer.gap(after[rows])

    def extremes() -> Iterator[NDArray[np.bool_]]:
        draw = np.random.default_rng(seed)
        grouped = np.argsort(fewer.number, kind="stable")
        ordered = after[rows][grouped]
        for _ in range(most):
            shuffled = np.empty(len(ordered), bool)
            order = np.lexsort((draw.random(len(ordered)), fewer.number[grouped]))
            shuffled[grouped] = ordered[order]
            yield np.array([fewer.gap(shuffled) >= observed - 1e-12])

    return SamePairs(within, between, p_of(extremes))


@dataclass(frozen=True)
class _Tallies:
    number: Integers  # [votes] of the pair
    answer: Integers  # [votes]

    def agreement(self, after: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats, Floats]:
        """[pairs]: equal ones of all two votes of different groups, all these; the same of votes of one group."""
        tally = np.zeros((2, int(self.number.max()) + 1, int(self.answer.max()) + 1))
        np.add.at(tally, (after.astype(int), self.number, self.answer), 1.0)
        votes = tally.sum(axis=2)
        equal, of = (tally[0] * tally[1]).sum(axis=1), votes[0] * votes[1]
        same = (tally * (tally - 1)).sum(axis=(0, 2)) / 2
        return equal, of, same, (votes * (votes - 1)).sum(axis=0) / 2

    def gap(self, after: NDArray[np.bool_]) -> float:
        """How much less often votes of different groups are equal than those of one."""
        equal, of, same, among = (column.sum() for column in self.agreement(after))
        return float(same / max(1.0, among) - equal / max(1.0, of))
