"""Scores of responses and reliabilities of annotators, fitted together: CrowdBT.

Chen, Bennett, Collins-Thompson & Horvitz 2013, "Pairwise ranking aggregation in a crowdsourced setting", eq. 4:

    P(annotator k prefers i to j) = eta_k sigmoid(s_i - s_j) + (1 - eta_k) sigmoid(s_j - s_i)

eta is 1 for who follows the scores, 0.5 for who tosses a coin, below it for who votes against them. All pairs of a
prompt's responses share the responses' scores, so votes on other pairs of them count too. A tie is half a vote for each
side. Priors: s ~ Normal(0, SPREAD^2), eta ~ Beta. Whether a vote followed the scores is the latent variable of an EM;
scores rise by a quadratic bound of the logistic likelihood (Jaakkola & Jordan 2000), so no step can overshoot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.annotators.opinions import Opinion
from data.annotators.tables import TIE, Floats, Integers, VoteTable

SPREAD = 3.0  # nats
RIGHT, WRONG = 2.0, 1.0  # votes that everybody is taken to have cast beforehand: a prior of Beta(3, 2)
TOLERANCE = 1e-5  # nats, and probability
ITERATIONS = 5000


@dataclass(frozen=True)
class Ballots:
    """Votes for one side; a tie is two of them, of half the weight."""

    winner: Integers
    loser: Integers
    annotator: Integers
    weight: Floats

    def of(self, wanted: NDArray[np.bool_]) -> Ballots:
        """Some of them."""
        return Ballots(self.winner[wanted], self.loser[wanted], self.annotator[wanted], self.weight[wanted])


@dataclass(frozen=True)
class Fit:
    """The maximum of the posterior density."""

    scores: Floats  # [responses] nats
    followed: Floats  # [annotators] eta


def bradley_terry(table: VoteTable) -> Opinion:
    """P(first wins) = sigmoid(difference of scores), as an annotator who follows them would vote."""
    ballots = ballots_of(table)
    fitted = fit(ballots, len(table.responses) and int(table.responses.max()) + 1, len(table.names))
    difference = fitted.scores[table.responses[:, 0]] - fitted.scores[table.responses[:, 1]]
    return Opinion(sigmoid(difference), _others(table, ballots, fitted))


def ballots_of(table: VoteTable) -> Ballots:
    """The votes, one way or both."""
    first, second = table.responses[table.pair].T
    signs = table.signs
    tie = table.answer == TIE
    winner, loser = np.where(signs < 0, second, first), np.where(signs < 0, first, second)
    weight = np.where(tie, table.weight / 2, table.weight)
    return Ballots(
        np.concatenate([winner, loser[tie]]),
        np.concatenate([loser, winner[tie]]),
        np.concatenate([table.annotator, table.annotator[tie]]),
        np.concatenate([weight, weight[tie]]),
    )


def fit(ballots: Ballots, responses: int, annotators: int, tolerance: float = TOLERANCE) -> Fit:
    """EM from even scores, and annotators who follow them as often as the prior says."""
    totals = np.bincount(ballots.annotator, ballots.weight, annotators) + RIGHT + WRONG
    start = Fit(np.zeros(responses), np.full(annotators, RIGHT / (RIGHT + WRONG)))
    for _ in range(ITERATIONS):
        after = _scores(ballots, start)
        right = _following(ballots, Fit(after, start.followed)) * ballots.weight
        followed = (np.bincount(ballots.annotator, right, annotators) + RIGHT) / totals
        change = max(np.abs(after - start.scores).max(initial=0.0), np.abs(followed - start.followed).max(initial=0.0))
        start = Fit(after, followed)
        if change < tolerance:
            break
    return start


def _following(ballots: Ballots, at: Fit) -> Floats:
    """[ballots]: the probability that it followed the scores."""
    eta = at.followed[ballots.annotator]
    agrees = sigmoid(at.scores[ballots.winner] - at.scores[ballots.loser])
    found: Floats = eta * agrees / (eta * agrees + (1 - eta) * (1 - agrees))
    return found


def _scores(ballots: Ballots, at: Fit) -> Floats:
    """One step of all scores up the bound that touches at the present ones."""
    difference = at.scores[ballots.winner] - at.scores[ballots.loser]
    slope = ballots.weight * (_following(ballots, at) - sigmoid(difference))
    half = np.abs(difference) / 2
    curvature = ballots.weight * np.divide(np.tanh(half), 4 * half, out=np.full_like(half, 0.25), where=half > 1e-6)
    responses = len(at.scores)
    gradient = np.bincount(ballots.winner, slope, responses) - np.bincount(ballots.loser, slope, responses)
    # (a - b)^2 <= 2 a^2 + 2 b^2 makes the bound one of each score by itself.
    both = np.bincount(ballots.winner, curvature, responses) + np.bincount(ballots.loser, curvature, responses)
    step: Floats = (gradient - at.scores / SPREAD**2) / (2 * both + 1 / SPREAD**2)
    return at.scores + step


def _others(table: VoteTable, ballots: Ballots, fitted: Fit) -> Floats:
    """[votes]: P(first wins) by scores fitted without the vote's annotator, on what this one voted on."""
    component = connected(table.responses, len(fitted.scores))
    found = np.full(len(table.pair), 0.5)
    for annotator in range(len(table.names)):
        mine = table.annotator == annotator
        ends = table.responses[table.pair[mine]]
        concerned = np.zeros(len(fitted.scores), bool)
        concerned[component[ends[:, 0]]] = True
        used = concerned[component[ballots.winner]] & (ballots.annotator != annotator)
        kept = np.flatnonzero(concerned[component])
        number = np.full(len(fitted.scores), -1)
        number[kept] = np.arange(len(kept))
        some = ballots.of(used)
        some = Ballots(number[some.winner], number[some.loser], some.annotator, some.weight)
        scores = fitted.scores[kept]
        for _ in range(ITERATIONS):
            after = _scores(some, Fit(scores, fitted.followed))
            change, scores = np.abs(after - scores).max(initial=0.0), after
            if change < TOLERANCE:
                break
        found[mine] = sigmoid(scores[number[ends[:, 0]]] - scores[number[ends[:, 1]]])
    return found


def connected(pairs: Integers, nodes: int) -> Integers:
    """[nodes]: the least node that pairs [pairs, 2] lead to from each."""
    component = np.arange(nodes)
    while len(pairs):
        least = component[pairs].min(axis=1)
        before = component.copy()
        np.minimum.at(component, pairs[:, 0], least)
        np.minimum.at(component, pairs[:, 1], least)
        if (component == before).all():
            break
    return component


def sigmoid(x: Floats) -> Floats:
    """The logistic curve, which the hyperbolic tangent gives without overflow."""
    y: Floats = 0.5 + 0.5 * np.tanh(0.5 * x)
    return y
