"""Votes on pairs that were voted on before: what tells that they differ, and that people agree with themselves."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from data.drift import same_pairs
from data.drift.batches import Batched
from data.drift.report import Options, drift_of
from data.drift.same_pairs import Answers, compare
from data.drift.table import gather
from data.quality.votes import Vote
from rlhf.types import Comparison, Prompt


def test_the_same_pairs_voted_otherwise_are_found_and_harder_ones_are_not() -> None:
    draw = np.random.default_rng(3)
    pair, after = np.repeat(np.arange(60), 4), np.tile([False, False, True, True], 60)
    truth = np.repeat(draw.integers(0, 2, 60), 4)
    noisy = np.where(draw.random(240) < 0.25, 1 - truth, truth)
    people = np.tile([0, 1, 0, 2], 60)  # the first of them in both
    steady = compare(Answers(pair, people, noisy), after, 2000)
    turned = compare(Answers(pair, people, np.where(after & (pair < 50), 1 - noisy, noisy)), after, 2000)
    assert steady is not None and steady.p is not None and steady.p > 0.05
    assert turned is not None and turned.p is not None and turned.p < 0.005
    assert turned.within is not None and turned.between.mean < turned.within.mean - 0.1
    unnamed = np.full(2, -1)
    assert compare(Answers(np.arange(2), unnamed, np.zeros(2, int)), np.array([False, True]), 10) is None
    single = compare(Answers(np.array([0, 0]), unnamed, np.array([0, 1])), np.array([False, True]), 10)
    assert single is not None and single.p is None and single.between.mean == 0.0


def test_same_pairs_are_counted_as_by_hand() -> None:
    """One pair: ann twice before (the last counts) and once after, bob before, cid and somebody unnamed after."""
    annotator, answer = np.array([0, 0, 1, 0, 2, -1]), np.array([1, 0, 0, 0, 1, 0])
    votes, after = Answers(np.zeros(6, int), annotator, answer), np.array([0, 0, 0, 1, 1, 1], bool)
    found = compare(votes, after, 10)
    assert found is not None and found.within is not None
    assert (found.within.count.sum(), found.within.sum.sum()) == (1 + 3, 1 + 1)  # ann and bob; three after
    assert (found.between.count.sum(), found.between.sum.sum()) == (2 * 3 - 1, 3)  # all but ann with herself
    own = Answers(np.zeros(2, int), np.zeros(2, int), np.zeros(2, int))
    assert compare(own, np.array([False, True]), 10) is None  # a person alone


def test_pairs_of_two_votes_are_too_few_for_a_test() -> None:
    """Twenty pairs of three votes are needed, however many of two there are."""
    for many, tested in ((19, False), (20, True)):
        pair = np.concatenate([np.repeat(np.arange(many), 3), np.repeat(np.arange(many, 60), 2)])
        after = np.concatenate([np.tile([False, False, True], many), np.tile([False, True], 60 - many)])
        found = compare(Answers(pair, np.full(len(pair), -1), pair % 2), after, 50)
        assert found is not None and (found.p is not None) == tested


def test_p_is_the_share_of_all_ways_to_exchange_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By definition: the two votes of who voted in both change places or not, all others are dealt out in every way."""
    monkeypatch.setattr(same_pairs, "FEWEST_PAIRS", 1)
    people, side = "aabcdabcd", np.array([0, 1, 0, 0, 1, 0, 0, 1, 1], bool)
    pair, answer = np.repeat([0, 1], [5, 4]), np.array([0, 1, 1, 0, 1, 1, 1, 0, 0])
    pairs = list(itertools.combinations(range(9), 2))

    def gap(after: tuple[bool, ...]) -> float:
        two = [(i, j) for i, j in pairs if pair[i] == pair[j] and (pair[i], people[i]) != (pair[j], people[j])]
        equal = [[answer[i] == answer[j] for i, j in two if (after[i] == after[j]) == alike] for alike in (True, False)]
        return float(np.mean(equal[0]) - np.mean(equal[1]))

    ways = [
        gap(after)
        for after in itertools.product([False, True], repeat=9)
        if after[0] != after[1] and sum(after[2:5]) == 1 and sum(after[5:]) == 2
    ]
    exact = np.mean([way >= gap(tuple(side)) - 1e-9 for way in ways])
    votes = Answers(pair, np.array(["abcd".index(who) for who in people]), answer)
    found = [compare(votes, side, 2000, seed) for seed in range(30)]
    assert len(ways) == 2 * 3 * 6 and 0.01 < exact < 0.5
    assert np.mean([each.p for each in found if each and each.p]) == pytest.approx(exact, rel=0.15)


def opinionated(seed: int, casts: list[str | None]) -> list[Batched]:
    """Sixty pairs; each person has one opinion of each. casts: batches, and who of six people votes; None: any two."""
    draw, made = random.Random(seed), []
    for pair in range(60):
        chance, people = draw.uniform(0.5, 0.9), draw.sample("abcdef", 6)
        likes = {who: draw.random() < chance for who in people}
        for batch, cast in enumerate(casts):
            for who in cast or draw.sample("abcdef", 2):
                who = people[int(who)] if who.isdigit() else who
                sides = ("one", "other") if likes[who] else ("other", "one")
                known = Comparison(Prompt(f"{pair}"), *sides, annotator=who)
                made.append((f"{batch}", Vote(f"{len(made)}", known, held_out=False)))
    return made


@pytest.mark.parametrize("casts", [["0", "0", "1"], ["0", "0", "12"], [None, None, None]])
def test_who_agrees_with_themselves_feigns_no_drift(casts: list[str | None]) -> None:
    """Batch after batch has votes of the same people on the same pairs, and nobody's mind changes."""
    found = [drift_of(gather(opinionated(seed, casts)), Options()) for seed in range(8)]
    assert sum(bool(each.drifted) for each in found) <= 1
    tested = [change.p for each in found for change in each.batches[2].changes if change.measure == "same pairs"]
    assert len(tested) == 8 and (casts[0] == "0" or None not in tested)
