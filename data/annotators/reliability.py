"""How often each annotator is right, by the votes of the others alone, with an interval.

Nobody's own votes vouch for them: whether a vote was right is told by what everybody else says of the pair, and that
with its doubts. Where q is the probability by the others' votes that the voted one is better, a vote of an annotator
who is right with probability r has the likelihood r q + (1 - r) (1 - q), and r's mean and interval follow from an even
prior. Where nobody else voted q is 0.5, and the vote says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.annotators.opinions import Opinion
from data.annotators.tables import TIE, Floats, VoteTable

GRID = (np.arange(1000) + 0.5) / 1000
CHANCE = 0.65  # who may be at 0.5, and is surely below this, votes as a coin would

Finding = Literal["reliable", "random", "against", "unknown"]
MEANING: dict[Finding, str] = {
    "reliable": "",
    "random": "votes like a coin",
    "against": "votes against the others",
    "unknown": "too few votes to tell",
}


@dataclass(frozen=True)
class Reliability:
    """Of one annotator."""

    name: str
    votes: int
    ties: int
    compared: int  # votes for one side that others' votes tell something of
    agreement: float | None  # share of these that the others favour too
    reliability: float  # P(a vote for one side is right): the mean
    interval: tuple[float, float]  # 95 %
    worth: float  # of a vote, in votes of somebody who is always right, or always wrong: mean of (2 r - 1)^2

    @property
    def finding(self) -> Finding:
        """What the interval says."""
        low, high = self.interval
        if high < 0.5:
            return "against"
        if low > 0.5:
            return "reliable"
        return "random" if high < CHANCE else "unknown"


def reliabilities(table: VoteTable, opinion: Opinion) -> list[Reliability]:
    """One for each annotator of the table, in its order."""
    right = np.where(table.signs > 0, opinion.others, 1 - opinion.others)
    sided = (table.answer != TIE) & (table.weight > 0)
    found = []
    for number, name in enumerate(table.names):
        mine = table.annotator == number
        probabilities = right[mine & sided]
        told = probabilities[np.abs(probabilities - 0.5) > 1e-9]
        density = _density(told)
        mean = float(density @ GRID)
        low, high = np.interp((0.025, 0.975), np.cumsum(density), GRID)
        found.append(
            Reliability(
                name=name,
                votes=int(mine.sum()),
                ties=int((mine & (table.answer == TIE)).sum()),
                compared=len(told),
                agreement=float((told > 0.5).mean()) if len(told) else None,
                reliability=mean,
                interval=(float(low), float(high)),
                worth=float(density @ (2 * GRID - 1) ** 2),
            )
        )
    return found


def _density(right: Floats) -> Floats:
    """[grid]: the posterior of r, summing to 1; right [votes] as q above."""
    logs = np.zeros(len(GRID))
    for part in np.array_split(right, max(1, len(right) // 10_000)):
        logs += np.log(np.outer(part, GRID) + np.outer(1 - part, 1 - GRID)).sum(axis=0)
    density = np.exp(logs - logs.max())
    posterior: Floats = density / density.sum()
    return posterior
