"""Votes on pairs of responses: a set of them, and simulated ones where a scorer stands for the voters."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.types import Comparison, Completion, Scorer


@dataclass(frozen=True)
class Comparisons:
    """Votes, and the accuracy that the best possible predictor of them would have, where that is known."""

    records: list[Comparison]
    bayes_accuracy: float | None = None  # mean of max(p, 1 - p) over the votes that are no ties


def simulate_votes(
    pairs: Sequence[tuple[Completion, Completion]], labeller: Scorer, sharpness: float, seed: int
) -> Comparisons:
    """Let a scorer vote on pairs by Bradley-Terry: P(first wins) = sigmoid(sharpness * score difference).

    Pairs of equal texts are left out: nobody can prefer one of them.
    """
    pairs = [(one, other) for one, other in pairs if one.response != other.response]
    prompts = [one.prompt.text for one, _ in pairs]
    first = labeller(prompts, [one.response for one, _ in pairs])
    second = labeller(prompts, [other.response for _, other in pairs])
    generator = random.Random(f"{seed}/votes")
    records, best = [], []
    for (one, other), one_score, other_score in zip(pairs, first, second, strict=True):
        # The hyperbolic tangent is the same logistic curve, and does not overflow.
        probability = 0.5 + 0.5 * math.tanh(0.5 * sharpness * (one_score - other_score))
        best.append(max(probability, 1 - probability))
        winner, loser = (one, other) if generator.random() < probability else (other, one)
        records.append(
            Comparison(
                one.prompt,
                winner.response,
                loser.response,
                annotator="simulated",
                chosen_finished=winner.finished,
                rejected_finished=loser.finished,
            )
        )
    return Comparisons(records, sum(best) / len(best) if best else None)
