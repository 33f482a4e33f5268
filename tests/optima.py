"""The KL-regularised optimum a second time, from the definition, in loops over dictionaries; independent of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping

Distribution = Mapping[tuple[int, ...], float]


def optimum(reference: Distribution, rewards: Distribution, beta: float) -> dict[tuple[int, ...], float]:
    """pi_ref(y) exp(r(y) / beta) / Z."""
    weights = {y: p * math.exp(rewards[y] / beta) for y, p in reference.items()}
    z = math.fsum(weights.values())
    return {y: weight / z for y, weight in weights.items()}


def objective(policy: Distribution, reference: Distribution, rewards: Distribution, beta: float) -> float:
    """E[r] - beta E[log pi - log pi_ref]."""
    gains = [p * (rewards[y] - beta * (math.log(p) - math.log(reference[y]))) for y, p in policy.items() if p > 0]
    return math.fsum(gains)


def total_variation(first: Distribution, second: Distribution) -> float:
    """The probability of all that the first makes likelier, less what the second gives it."""
    return math.fsum(first[y] - second[y] for y in first if first[y] > second[y])
