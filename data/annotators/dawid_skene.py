"""Dawid & Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm".

Each annotator has a confusion matrix: what they say, given what is so. Which answer is so is not known of any item, and
is estimated together with the matrices. `rates` does this for labels of any kind, `dawid_skene` for votes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.annotators.opinions import Opinion, summed_by_annotator
from data.annotators.tables import FIRST, SECOND, TIE, Floats, Integers, VoteTable

TOLERANCE = 1e-7  # change of a probability at which the EM has converged
ITERATIONS = 2000
TINY = 1e-300
# Votes that everybody is taken to have cast beforehand, [what is so, what they say], so that few real ones say little.
BEFORE = np.array([[2.0, 1.0, 0.5], [1.0, 2.0, 0.5], [0.75, 0.75, 1.5]])


@dataclass(frozen=True)
class Labels:
    """Answers to items; the same index in all arrays is one answer."""

    item: Integers
    annotator: Integers
    answer: Integers  # as it was seen: where turned, classes 0 and 1 have changed their roles
    turned: NDArray[np.bool_]
    weight: Floats


@dataclass(frozen=True)
class Assumptions:
    """What is taken for granted."""

    before: NDArray[np.float64] | float = 0.0  # counts [classes, classes] that each matrix starts with
    one_coin: bool = False  # one figure for each annotator: right with probability r, or else any other answer
    symmetric: bool = False  # classes 0 and 1 are equally frequent


@dataclass(frozen=True)
class Rates:
    """What was estimated."""

    posterior: Floats  # [items, classes] probability that an answer is so
    confusion: Floats  # [annotators, classes, classes] P(says the second | the first is so)
    prior: Floats  # [classes]
    terms: Floats  # [labels, classes] log-likelihood of each label, whichever answer is so


def rates(labels: Labels, start: Floats, annotators: int, assumptions: Assumptions) -> Rates:
    """EM from a first posterior [items, classes] until no probability changes."""
    posterior = start
    for _ in range(ITERATIONS):
        confusion = _confusion(labels, posterior, annotators, assumptions)
        prior = posterior.mean(axis=0)
        if assumptions.symmetric:
            prior[:2] = prior[:2].mean()
        logs = np.log(np.maximum(confusion, TINY))[labels.annotator, :, labels.answer]
        terms = _turn(logs, labels.turned) * labels.weight[:, None]
        total = np.tile(np.log(np.maximum(prior, TINY)), (len(start), 1))
        np.add.at(total, labels.item, terms)
        previous, posterior = posterior, normalised(total)
        if np.abs(posterior - previous).max(initial=0.0) < TOLERANCE:
            break
    return Rates(posterior, confusion, prior, terms)


def dawid_skene(table: VoteTable, one_coin: bool = False) -> Opinion:
    """Votes as labels: first, second, tie. An annotator's matrix is about the order in which they saw the responses.

    So one who always takes the response shown first is seen as that, and counts for nothing.
    """
    exchanged = np.array([SECOND, FIRST, TIE])
    seen = np.where(table.turned, exchanged[table.answer], table.answer)
    labels = Labels(table.pair, table.annotator, seen, table.turned, table.weight)
    start = np.full((table.pairs, 3), 1e-9)
    np.add.at(start, (table.pair, table.answer), table.weight)
    start /= start.sum(axis=1, keepdims=True)
    found = rates(labels, start, len(table.names), Assumptions(BEFORE, one_coin, symmetric=True))
    logs = np.log(np.maximum(found.posterior, TINY))[table.pair] - summed_by_annotator(table, found.terms)
    decided = normalised(logs[:, :2])[:, 0]
    return Opinion(found.posterior[:, FIRST] + found.posterior[:, TIE] / 2, decided)


def _confusion(labels: Labels, posterior: Floats, annotators: int, assumptions: Assumptions) -> Floats:
    """The M step: of what each annotator has said, the shares for each answer that may be so."""
    classes = posterior.shape[1]
    counts = np.zeros((annotators, classes, classes))
    truth = _turn(posterior[labels.item], labels.turned) * labels.weight[:, None]
    np.add.at(counts.transpose(0, 2, 1), (labels.annotator, labels.answer), truth)
    counts += assumptions.before
    if assumptions.one_coin:
        right = np.trace(counts, axis1=1, axis2=2) / np.maximum(counts.sum(axis=(1, 2)), TINY)
        same = np.eye(classes)
        coin: Floats = right[:, None, None] * same + ((1 - right) / (classes - 1))[:, None, None] * (1 - same)
        return coin
    totals = counts.sum(axis=2, keepdims=True)
    shares: Floats = np.divide(counts, totals, out=np.full_like(counts, 1 / classes), where=totals > 0)
    return shares


def _turn(rows: Floats, turned: NDArray[np.bool_]) -> Floats:
    """[labels, classes] with the first two columns exchanged where turned."""
    exchanged = np.concatenate([rows[:, 1::-1], rows[:, 2:]], axis=1)
    return np.where(turned[:, None], exchanged, rows)


def normalised(logs: Floats) -> Floats:
    """Probabilities, by the logarithms of each row up to a constant."""
    shifted = np.exp(logs - logs.max(axis=1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
