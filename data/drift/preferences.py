"""What people prefer, as far as a linear Bradley-Terry model on the texts knows it (Bradley & Terry 1952).

It is fitted on the votes of other batches, and predicts votes on prompts that it was not fitted on, of these and of the
batch in question alike: so both are as new to it, and a difference is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.annotators.bradley_terry import sigmoid
from data.annotators.tables import Floats, Integers

FOLDS = 5
FORM_SPREAD, WORD_SPREAD = 0.3, 0.1  # nats: standard deviations of weights beforehand
MOST_FITTED = 20_000  # votes; more would say little more of some two hundred weights
STEPS, TOLERANCE = 25, 1e-6


@dataclass(frozen=True)
class Features:
    """What the model sees of votes."""

    values: Floats  # [votes, features] of the chosen less those of the rejected response
    form: int  # the first of them are of the form, the others words
    fold: Integers  # [votes] by their prompts

    @property
    def precision(self) -> Floats:
        """[features]: of the prior of the weights, Normal(0, 1 / precision)."""
        spread = np.full(self.values.shape[1], WORD_SPREAD)
        spread[: self.form] = FORM_SPREAD
        precision: Floats = spread**-2
        return precision


def fit(differences: Floats, precision: Floats) -> Floats:
    """[features]: the weights of highest posterior density, given [votes, features], by Newton's method."""
    weights = np.zeros(differences.shape[1])
    for _ in range(STEPS):
        chance = sigmoid(differences @ weights)
        gradient = differences.T @ (1 - chance) - precision * weights
        curvature = (differences.T * (chance * (1 - chance))) @ differences + np.diag(precision)
        step = np.linalg.solve(curvature, gradient)
        weights += step * min(1.0, 2.0 / max(1e-12, float(np.abs(step).max())))  # far off, Newton overshoots
        if float(np.abs(step).max(initial=0.0)) < TOLERANCE:
            break
    return weights


def margins(features: Features, known: NDArray[np.bool_], wanted: NDArray[np.bool_], seed: int = 0) -> Floats:
    """[votes]: the score of the chosen less that of the rejected response in nats, of wanted votes; nan of others.

    known: the votes to learn from, without ties. Each fold is predicted from the known votes of the others.
    """
    found = np.full(len(features.fold), np.nan)
    draw = np.random.default_rng(seed)
    for fold in range(FOLDS):
        rows = np.flatnonzero(known & (features.fold != fold))
        if len(rows) > MOST_FITTED:
            rows = np.sort(draw.permutation(rows)[:MOST_FITTED])
        weights = fit(features.values[rows], features.precision)
        here = wanted & (features.fold == fold)
        found[here] = features.values[here] @ weights
    return found


def surplus(margin: Floats) -> Floats:
    """[votes]: whether the model predicts a vote, less how surely it expects to.

    (1 - p) sign(margin), with p = P(the vote). Its mean is 0 where the model is right about how sure it can be, however
    hard the pairs are, and below where people vote otherwise than it has learnt.
    """
    more: Floats = (1 - sigmoid(margin)) * np.sign(margin)
    return more
