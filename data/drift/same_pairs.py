"""On pairs voted on in both groups: how often a vote after says what another person's vote before does.

That is compared with how often votes of one group agree. Which of a pair's votes are those after is permuted within the
pair, so pairs may be as hard as they like. Of two votes on a pair, one in each group, nothing can be tested.

People agree with themselves more than with others. So each counts once in a group, two votes of one person are never
compared, and of who voted in both groups the two votes change places; only the others are dealt out anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.annotators.tables import Floats, Integers
from data.drift.permutation import Lots, p_of

FEWEST_PAIRS = 20  # of three votes or more: below, there is no test


@dataclass(frozen=True)
class Answers:
    """Votes on pairs, the oldest first; equal index, equal vote."""

    pair: Integers
    annotator: Integers  # -1: unnamed, each somebody else
    answer: Integers  # from 0


@dataclass(frozen=True)
class SamePairs:
    """Votes on pairs that two people voted on, one in each group."""

    within: Lots | None  # equal ones of two votes of one group, by pairs; None where no group has two on a pair
    between: Lots  # equal ones of a vote of each
    p: float | None  # one-sided: whether they agree less between than within; None: too few pairs for a test


def compare(votes: Answers, after: NDArray[np.bool_], most: int, seed: int = 0) -> SamePairs | None:
    """Compare; after [votes]. Of a named annotator's votes on a pair in a group the last counts.

    None where there is no pair with a vote of each group by two people.
    """
    # No two unnamed votes are one person's, and no person's votes on two pairs have to do with each other.
    people = int(votes.annotator.max(initial=-1)) + 1
    named = np.where(votes.annotator < 0, people + np.arange(len(votes.pair)), votes.annotator)
    person = votes.pair * (people + len(votes.pair)) + named
    _, newest = np.unique((person * 2 + after)[::-1], return_index=True)
    kept = np.sort(len(person) - 1 - newest)
    if not len(kept):
        return None
    tallies, after = _Tallies.of(votes.pair[kept], person[kept], votes.answer[kept]), after[kept]
    equal, of, same, among = tallies.agreement(after)
    both = of > 0
    if not both.any():
        return None
    between, told = Lots(of[both], equal[both]), both & (among > 0)
    within = Lots(among[told], same[told]) if told.any() else None
    movable = both & (np.bincount(tallies.pair) > 2)  # the others say the same, however their votes are exchanged
    if movable.sum() < FEWEST_PAIRS:
        return SamePairs(within, between, None)
    rows = kept[movable[tallies.pair]]
    after = after[movable[tallies.pair]]
    fewer = _Tallies.of(votes.pair[rows], person[rows], votes.answer[rows])
    observed = fewer.gap(after)

    def extremes() -> Iterator[NDArray[np.bool_]]:
        draw = np.random.default_rng(seed)
        for shuffled in fewer.permutations(after, most, draw):
            yield np.array([fewer.gap(shuffled) >= observed - 1e-12])

    return SamePairs(within, between, p_of(extremes))


@dataclass(frozen=True)
class _Tallies:
    pair: Integers  # [votes] from 0
    answer: Integers  # [votes]
    twice: Integers  # [people, 2] the two votes of who voted on a pair in both groups

    @classmethod
    def of(cls, pair: Integers, person: Integers, answer: Integers) -> _Tallies:
        order = np.argsort(person, kind="stable")
        again = person[order[1:]] == person[order[:-1]]
        twice = np.stack([order[:-1][again], order[1:][again]], axis=1)
        return cls(np.unique(pair, return_inverse=True)[1], answer, twice)

    def agreement(self, after: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats, Floats]:
        """[pairs]: equal ones of all two people's votes of different groups, all these; the same of one group."""
        tally = np.zeros((2, int(self.pair.max()) + 1, int(self.answer.max()) + 1))
        np.add.at(tally, (after.astype(int), self.pair, self.answer), 1.0)
        votes = tally.sum(axis=2)
        equal, of = (tally[0] * tally[1]).sum(axis=1), votes[0] * votes[1]
        own, (one, other) = self.pair[self.twice[:, 0]], self.answer[self.twice].T
        equal -= np.bincount(own, one == other, minlength=len(of))
        of -= np.bincount(own, minlength=len(of))
        same = (tally * (tally - 1)).sum(axis=(0, 2)) / 2
        return equal, of, same, (votes * (votes - 1)).sum(axis=0) / 2

    def gap(self, after: NDArray[np.bool_]) -> float:
        """How much less often votes of different groups are equal than those of one."""
        equal, of, same, among = (column.sum() for column in self.agreement(after))
        return float(same / max(1.0, among) - equal / max(1.0, of))

    def permutations(
        self, after: NDArray[np.bool_], most: int, draw: np.random.Generator
    ) -> Iterator[NDArray[np.bool_]]:
        """So many ways in which `after` could be, in each group as many votes on each pair as there are."""
        alone = np.setdiff1d(np.arange(len(after)), self.twice)
        alone = alone[np.argsort(self.pair[alone], kind="stable")]
        of_pair, dealt = self.pair[alone], after[alone]
        for _ in range(most):
            shuffled = after.copy()
            shuffled[alone] = dealt[np.lexsort((draw.random(len(alone)), of_pair))]
            shuffled[self.twice] ^= draw.random((len(self.twice), 1)) < 0.5
            yield shuffled
