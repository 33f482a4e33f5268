"""What a method makes of a table of votes; the plainest method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.annotators.tables import FIRST, TIE, Floats, VoteTable


@dataclass(frozen=True)
class Opinion:
    """Who wins each pair, and what all but one annotator say of the pairs that this one voted on."""

    first_wins: Floats  # [pairs] P(the first response is the better one), a tie counted half
    others: Floats  # [votes] the same, ties aside, by the votes of everybody else alone; 0.5 where there is nobody


def majority(table: VoteTable) -> Opinion:
    """The share of votes, ties counted half. The others' share has a vote for each side added (Laplace's rule)."""
    tallies = np.zeros((table.pairs, 3))
    np.add.at(tallies, (table.pair, table.answer), table.weight)
    for_first = tallies[:, FIRST] + tallies[:, TIE] / 2
    total = tallies.sum(axis=1)
    share = np.divide(for_first, total, out=np.full(table.pairs, 0.5), where=total > 0)
    worth = np.array([1.0, 0.0, 0.5])[table.answer] * table.weight
    own_first, own_total = summed_by_annotator(table, np.stack([worth, table.weight], axis=1)).T
    others = (for_first[table.pair] - own_first + 1) / (total[table.pair] - own_total + 2)
    return Opinion(share, others)


def summed_by_annotator(table: VoteTable, terms: Floats) -> Floats:
    """[votes, n]: of terms of votes [votes, n], the sum over all votes of the same annotator on the same pair."""
    _, group = np.unique(table.pair * (len(table.names) + 1) + table.annotator, return_inverse=True)
    sums = np.zeros((int(group.max(initial=-1)) + 1, terms.shape[1]))
    np.add.at(sums, group, terms)
    mine: Floats = sums[group]
    return mine
