"""Consensus and reliability: against crowd-kit and slow independent versions, on simulated and published votes."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.optimize

from data.annotators import bradley_terry as crowd_bt
from data.annotators.consensus import METHODS, consensus, records
from data.annotators.dawid_skene import Assumptions, Labels, rates
from data.annotators.opinions import Opinion
from data.annotators.reliability import reliabilities
from data.annotators.tables import FIRST, TIE, VoteTable, tabulate
from rlhf.types import Comparison, Prompt
from tests.crowd import RELIABILITIES, Crowd, measured, simulate

SEEDS = (1, 2, 3)
BETTER_BY = 0.1  # accuracy of the consensus over the majority's, least of all seeds


def said(chosen: str, rejected: str, annotator: str | None = "ann", **more: object) -> Comparison:
    return Comparison(Prompt("p"), chosen, rejected, annotator=annotator, **more)  # type: ignore[arg-type]


def first_wins(table: VoteTable, opinion: Opinion, text: str, votes: list[Comparison]) -> float:
    """P(a text wins) in the only pair."""
    chosen = votes[table.origin[0]].chosen == text
    return float(opinion.first_wins[0] if chosen == table.first_was_chosen[0] else 1 - opinion.first_wins[0])


# All methods


@pytest.mark.parametrize("method", METHODS)
def test_no_method_depends_on_which_response_is_called_chosen(method: str) -> None:
    """Relabelling all texts turns their hashes, and so which is first, over: the consensus stays."""
    crowd = simulate(7, prompts=12)
    renamed = [replace(v, chosen=f"{v.chosen}!", rejected=f"{v.rejected}!") for v in crowd.votes]
    tables = crowd.table, tabulate(renamed)
    wins = []
    for table in tables:
        truth = np.array([crowd.votes[i].chosen < crowd.votes[i].rejected for i in table.origin])
        first = consensus(table, method).opinion.first_wins
        wins.append(np.where(truth == table.first_was_chosen, first, 1 - first))
    assert (tables[0].first_was_chosen != tables[1].first_was_chosen).any()
    np.testing.assert_allclose(wins[0], wins[1], atol=1e-4)


# Dawid and Skene


def labels_of(table: VoteTable) -> Labels:
    return Labels(table.pair, table.annotator, table.answer, np.zeros(len(table.pair), bool), table.weight)


def shares(table: VoteTable) -> np.ndarray:
    start = np.zeros((table.pairs, 3))
    np.add.at(start, (table.pair, table.answer), 1.0)
    return start / start.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("one_coin", [False, True])
def test_dawid_skene_is_that_of_crowd_kit(one_coin: bool) -> None:
    reliabilities = (0.95, 0.9, 0.85, 0.8, 0.7, 0.2)
    table = simulate(3, prompts=40, overlap=5, ties=0.0, reliabilities=reliabilities).table
    frame = pd.DataFrame({"task": table.pair, "worker": table.annotator, "label": table.answer})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what pandas is to give up
        from crowdkit.aggregation import DawidSkene, OneCoinDawidSkene

        # Its bound counts the prior once a vote, may fall, and would end the iterations early: no tolerance.
        theirs = (OneCoinDawidSkene if one_coin else DawidSkene)(n_iter=100, tol=-1.0).fit_predict_proba(frame)
    start = shares(table)[:, :2]
    ours = rates(labels_of(table), start, len(table.names), Assumptions(one_coin=one_coin)).posterior
    np.testing.assert_allclose(ours, theirs.sort_index()[[0, 1]].to_numpy(), atol=1e-4)


def test_dawid_skene_is_its_definition_vote_by_vote() -> None:
    """The paper's equations 2.3 to 2.5 in plain loops; who saw a pair turned has turned rows and columns."""
    crowd = simulate(4, prompts=3, overlap=4, ties=0.2)
    table = crowd.table
    before = np.array([[2.0, 1.0, 0.5], [1.0, 2.0, 0.5], [0.75, 0.75, 1.5]])
    swap = [1, 0, 2]
    votes = list(zip(table.pair, table.annotator, table.answer, table.turned, strict=True))
    seen = np.array([swap[answer] if turned else answer for _, _, answer, turned in votes])
    labels = Labels(table.pair, table.annotator, seen, table.turned, table.weight)
    ours = rates(labels, shares(table), len(table.names), Assumptions(before, symmetric=True))
    posterior = [list(row) for row in shares(table)]
    for _ in range(400):
        confusion = np.tile(before, (len(table.names), 1, 1))
        for pair, annotator, answer, turned in votes:
            for so in range(3):
                where = (swap[so], swap[answer]) if turned else (so, answer)
                confusion[annotator][where] += posterior[pair][so]
        prior = [sum(row[so] for row in posterior) / len(posterior) for so in range(3)]
        prior = [(prior[0] + prior[1]) / 2] * 2 + [prior[2]]
        for number in range(table.pairs):
            chances = list(prior)
            for pair, annotator, answer, turned in votes:
                for so in range(3):
                    if pair == number:
                        row = confusion[annotator][swap[so] if turned else so]
                        chances[so] *= row[swap[answer] if turned else answer] / sum(row)
            posterior[number] = [chance / sum(chances) for chance in chances]
    np.testing.assert_allclose(ours.posterior, posterior, atol=1e-5)


def test_who_always_takes_the_response_shown_first_counts_for_nothing() -> None:
    crowd = simulate(5, prompts=40, responses=3, overlap=3, ties=0.0, reliabilities=(0.9, 0.9, 0.8))
    biased = [
        replace(v, annotator="first", chosen_shown_first=True) if i % 2 else replace(v, annotator="first")
        for i, v in enumerate(crowd.votes[::3])
    ]
    biased = [
        v if v.chosen_shown_first else replace(v, chosen=v.rejected, rejected=v.chosen, chosen_shown_first=True)
        for v in biased
    ]
    # Which response was shown first is tossed anew, so that the first one is right half of the time.
    draw = np.random.default_rng(0).random(len(biased)) < 0.5
    biased = [
        v if keep else replace(v, chosen=v.rejected, rejected=v.chosen) for v, keep in zip(biased, draw, strict=True)
    ]
    table = tabulate([*crowd.votes, *biased])
    found = consensus(table, "dawid-skene")
    by_name = {one.name: one for one in found.annotators}
    assert by_name["first"].finding == "random" and by_name["first"].worth < 0.1
    assert by_name["annotator 0"].finding == "reliable"


# Bradley and Terry with reliabilities


def density(parameters: np.ndarray, table: VoteTable, responses: int) -> float:
    """The negative logarithm of CrowdBT's posterior density, from its definition."""
    scores, eta = parameters[:responses], 1 / (1 + np.exp(-parameters[responses:]))
    total = sum(s**2 for s in scores) / (2 * crowd_bt.SPREAD**2)
    total -= sum(crowd_bt.RIGHT * math.log(e) + crowd_bt.WRONG * math.log(1 - e) for e in eta)
    for pair, annotator, answer in zip(table.pair, table.annotator, table.answer, strict=True):
        first, second = table.responses[pair]
        wins = 1 / (1 + math.exp(scores[second] - scores[first]))
        chance = eta[annotator] * wins + (1 - eta[annotator]) * (1 - wins)
        sides = (0.5, 0.5) if answer == TIE else (1.0, 0.0) if answer == FIRST else (0.0, 1.0)
        total -= sides[0] * math.log(chance) + sides[1] * math.log(1 - chance)
    return float(total)


def test_the_joint_fit_is_the_maximum_of_its_posterior_density() -> None:
    table = simulate(2, prompts=5, responses=3, overlap=4, ties=0.1, reliabilities=(0.95, 0.9, 0.8, 0.2)).table
    ours = crowd_bt.fit(crowd_bt.ballots_of(table), 15, 4, tolerance=1e-9)
    at = np.concatenate([ours.scores, np.log(ours.followed / (1 - ours.followed))])
    start = np.concatenate([np.zeros(15), np.full(4, 0.7)])
    best = scipy.optimize.minimize(density, start, (table, 15), tol=1e-9)
    assert density(at, table, 15) == pytest.approx(best.fun, abs=1e-5)
    np.testing.assert_allclose(ours.scores, best.x[:15], atol=5e-3)


def test_with_one_annotator_who_follows_scores_it_is_the_plain_model_of_choix() -> None:
    import choix

    draw = np.random.default_rng(1)
    wins = [(int(i), int(j)) for i, j in draw.integers(0, 6, (80, 2)) if i != j]
    winner, loser = np.array(wins).T
    ballots = crowd_bt.Ballots(winner, loser, np.zeros(len(wins), np.int64), np.ones(len(wins)))
    scores = np.zeros(6)
    for _ in range(3000):
        scores = crowd_bt._scores(ballots, crowd_bt.Fit(scores, np.ones(1)))
    theirs = choix.opt_pairwise(6, wins, alpha=1 / crowd_bt.SPREAD**2 / 2)
    np.testing.assert_allclose(scores, theirs, atol=1e-3)


def test_what_others_say_is_a_fit_without_the_annotator() -> None:
    table = simulate(6, prompts=6, responses=3, overlap=3).table
    ballots = crowd_bt.ballots_of(table)
    fitted = crowd_bt.fit(ballots, 18, len(table.names))
    others = crowd_bt.bradley_terry(table).others
    for annotator in range(len(table.names)):
        rest, scores = ballots.of(ballots.annotator != annotator), np.zeros(18)
        for _ in range(3000):
            scores = crowd_bt._scores(rest, crowd_bt.Fit(scores, fitted.followed))
        first, second = table.responses[table.pair].T
        expected = 1 / (1 + np.exp(scores[second] - scores[first]))
        mine = table.annotator == annotator
        np.testing.assert_allclose(others[mine], expected[mine], atol=2e-3)


# Reliability


def test_nobody_vouches_for_themselves() -> None:
    """Pairs with one vote each tell nothing of who cast them, by any method."""
    table = tabulate([Comparison(Prompt(f"{i}"), "a", "b", annotator="ann") for i in range(50)])
    for method in METHODS:
        (only,) = consensus(table, method).annotators
        assert only.finding == "unknown" and only.compared == 0 and only.agreement is None
        assert only.interval == pytest.approx((0.025, 0.975), abs=2e-3) and only.reliability == pytest.approx(0.5)


def test_of_pairs_that_are_surely_known_the_interval_is_the_beta_distribution() -> None:
    votes = [Comparison(Prompt(f"{i}"), "a", "b", annotator="ann") for i in range(40)]
    table = tabulate(votes)
    right = np.arange(40) < 30
    others = np.where(right == (table.signs > 0), 1.0, 0.0)
    (found,) = reliabilities(table, Opinion(others, others))
    assert found.reliability == pytest.approx(31 / 42, abs=1e-3) and found.agreement == 0.75
    assert found.interval == pytest.approx(scipy.stats.beta(31, 11).ppf([0.025, 0.975]), abs=2e-3)


@pytest.fixture(scope="module", params=SEEDS)
def crowd(request: pytest.FixtureRequest) -> Crowd:
    return simulate(request.param, overlap=5)


def test_the_joint_model_recovers_reliability_and_beats_the_majority(crowd: Crowd) -> None:
    plain = measured(crowd, "majority")
    for method in ("bradley-terry", "dawid-skene"):
        found = measured(crowd, method)
        assert found["rank_correlation"] >= 0.9, method
        assert found["accuracy"] >= plain["accuracy"] + BETTER_BY, method
        assert found["log_loss"] < plain["log_loss"] - 0.2, method


@pytest.mark.parametrize("method", ["bradley-terry", "dawid-skene"])
def test_adversaries_and_random_voters_are_found_and_their_votes_turned_or_dropped(crowd: Crowd, method: str) -> None:
    found = consensus(crowd.table, method)
    known = dict(zip(found.table.names, crowd.reliability, strict=True))
    for one in found.annotators:
        truth = known[one.name]
        if truth <= 0.2:
            assert one.finding == "against" and one.worth > 0.2
        elif truth == 0.5:
            assert one.finding == "random" and one.worth < 0.05
        elif truth >= 0.65:
            assert one.finding == "reliable"


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = [
        one.interval[0] <= truth <= one.interval[1]
        for seed in range(10, 16)
        for crowd in [simulate(seed, prompts=200, responses=2, overlap=5)]
        for one, truth in zip(consensus(crowd.table, "dawid-skene").annotators, crowd.reliability, strict=True)
    ]
    assert len(held) == 6 * len(RELIABILITIES) and np.mean(held) >= 0.85


# Soft labels and weights


def test_records_are_what_the_votes_say(crowd: Crowd) -> None:
    found = consensus(crowd.table, "majority")
    made = list(records(found, crowd.votes))
    assert len(made) == found.table.pairs and np.mean([one.weight for one in made]) == pytest.approx(1, abs=1e-3)
    tally: dict[tuple[str, str], list[float]] = {}
    for vote in crowd.votes:
        side = 0.5 if vote.tie else 1.0
        for winner, worth in ((vote.chosen, side), (vote.rejected, 1 - side)):
            key = vote.prompt.text, " ".join(sorted((vote.chosen, vote.rejected)))
            tally.setdefault((f"{key}", winner), []).append(worth)
    for one in made:
        key = f"{(one.prompt.text, ' '.join(sorted((one.chosen, one.rejected))))}"
        assert one.wanted == pytest.approx(np.mean(tally[key, one.chosen]), abs=1e-4) and one.wanted >= 0.5
        assert one.tie == (one.wanted == 0.5) and one.annotator is None


def test_weights_count_the_votes_that_are_worth_something() -> None:
    """A pair that only coins voted on weighs next to nothing."""
    reliable = simulate(8, prompts=150, responses=2, overlap=3, ties=0.0, reliabilities=(0.95, 0.9, 0.9, 0.5, 0.5))
    found = consensus(reliable.table, "dawid-skene")
    by_name = {one.name: one for one in found.annotators}
    worth = np.array([by_name[name].worth for name in found.table.names])
    expected = np.bincount(found.table.pair, worth[found.table.annotator])
    np.testing.assert_allclose(found.weights, expected / expected.mean())
    assert found.weights.max() / found.weights.min() > 2


def test_no_votes_make_an_empty_table() -> None:
    assert tabulate([]).pairs == 0
