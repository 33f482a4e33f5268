"""Votes on pairs of responses: a set of them, and simulated ones where a scorer stands for the voters."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.types import Comparison, Prompt, Scorer


@dataclass(frozen=True)
class Comparisons:
    """Votes, and the accuracy that the best possible predictor of them would have, where that is known."""

    records: list[Comparison]
    bayes_accuracy: float | None = None  # mean of max(p, 1 - p) over the votes that are no ties


def simulate_votes(
    pairs: Sequence[tuple[Prompt, str, str]], labeller: Scorer, sharpness: float, seed: int
) -> Comparisons:
    """Let a scorer vote on pairs by Bradley-Terry: P(first wins) = sigmoid(sharpness * score difference).

    Pairs of equal texts are left out: nobody can prefer one of them.
    """
    pairs = [pair for pair in pairs if pair[1] != pair[2]]
    prompts = [prompt.text for prompt, _, _ in pairs]
    first = labeller(prompts, [pair[1] for pair in pairs])
    second = labeller(prompts, [pair[2] for pair in pairs])
    generator = random.Random(f"{seed}/votes")
    records, best = [], []
    for (prompt, one, other), one_score, other_score in zip(pairs, first, second, strict=True):
        probability = 1 / (1 + math.exp(-sharpness * (one_score - other_score)))
        best.append(max(probability, 1 - probability))
        wins = generator.random() < probability
        records.append(Comparison(prompt, *((one, other) if wins else (other, one)), annotator="simulated"))
    return Comparisons(records, sum(best) / len(best) if best else None)
