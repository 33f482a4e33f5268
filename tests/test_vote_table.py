"""Votes as a table: what is one pair, and which vote of a name counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data.annotators.opinions import majority
from data.annotators.tables import UNNAMED, tabulate
from rlhf.types import Comparison, Prompt
from tests.test_annotators import first_wins, said


def test_a_pair_is_the_same_in_either_order_and_another_for_another_prompt() -> None:
    other = Comparison(Prompt("q"), "a", "b", annotator="ann")
    table = tabulate([said("a", "b"), said("b", "a", "bob"), other])
    assert table.pair.tolist() == [0, 0, 1] and table.pairs == 2 and len(set(table.responses.ravel())) == 4
    assert table.answer[0] != table.answer[1]


def test_the_newest_vote_of_a_name_counts_and_every_one_without() -> None:
    votes = [said("a", "b"), said("b", "a"), said("a", "b", None), said("a", "b", None)]
    table = tabulate(votes)
    assert table.repeated == 1 and len(table.pair) == 3 and table.names == ("ann", UNNAMED)
    assert first_wins(table, majority(table), "a", votes) == pytest.approx(2 / 3)


def test_the_newest_vote_is_the_one_that_was_cast_last_in_whatever_order_they_are_read() -> None:
    votes = [replace(said("b", "a"), time=2.0), replace(said("a", "b"), time=1.0)]
    for read in (votes, votes[::-1]):
        table = tabulate(read)
        assert (table.repeated, len(table.pair)) == (1, 1)
        assert first_wins(table, majority(table), "b", read) == pytest.approx(1.0)
