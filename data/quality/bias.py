"""What decides votes besides what was said: length, position, and who votes; with intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.quality.survey import LEADS, Survey
from rlhf.analysis.agreement import Agreement, agreement
from rlhf.analysis.statistics import sign_test, wilson_interval

FEWEST = 20  # votes of one annotator, or pairs, from which on he is looked at alone


@dataclass(frozen=True)
class Share:
    """How often something wins, of the votes in which it could."""

    wins: int
    votes: int

    @property
    def share(self) -> float:
        """Wins of votes."""
        return self.wins / self.votes if self.votes else 0.5

    def as_json(self) -> dict[str, Any]:
        """With the 95 % interval (Wilson) and the p-value of the sign test."""
        low, high = wilson_interval(self.wins, self.votes)
        p = sign_test(self.wins, self.votes)
        return {"wins": self.wins, "votes": self.votes, "share": self.share, "share_ci": [low, high], "p": p}

    def __str__(self) -> str:
        """For people."""
        low, high = wilson_interval(self.wins, self.votes)
        return f"{self.share:.1%} of {self.votes:,} votes (95 % interval {low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class Annotator:
    """One annotator's votes beside those of the others."""

    votes: int
    first_shown: Share  # how often the first wins, of votes whose order is known
    with_others: Share  # how often his direction is that of most others, of pairs on which most others have one


@dataclass(frozen=True)
class Bias:
    """What decides votes."""

    longer: Share
    longer_by_lead: dict[str, Share]  # by how many times as long the longer one is
    first_shown: Share
    annotators: dict[str, Annotator]
    agreement: Agreement | None  # None: no pair has votes of two annotators

    def partial_to_a_side(self, share: float, p: float) -> dict[str, Share]:
        """Annotators with whom one position wins more often than `share`, and not by chance, so many being asked."""
        asked = {name: each.first_shown for name, each in self.annotators.items() if each.first_shown.votes >= FEWEST}
        return {name: found for name, found in asked.items() if one_sided(found, share, p / len(asked))}

    def contrary(self, p: float) -> dict[str, Share]:
        """Annotators who vote against most others, and not by chance, so many being asked: labels may be swapped."""
        asked = {name: each.with_others for name, each in self.annotators.items() if each.with_others.votes >= FEWEST}
        against = {name: found for name, found in asked.items() if found.share < 0.5}
        return {name: found for name, found in against.items() if one_sided(found, 0.5, p / len(asked))}

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "longer_wins": self.longer.as_json(),
            "longer_wins_by_lead": {lead: share.as_json() for lead, share in self.longer_by_lead.items()},
            "first_shown_wins": self.first_shown.as_json() if self.first_shown.votes else None,
            "agreement": asdict(self.agreement) if self.agreement else None,
            "annotators": {
                name: {
                    "votes": each.votes,
                    "first_shown_wins": each.first_shown.as_json() if each.first_shown.votes else None,
                    "agrees_with_others": each.with_others.as_json() if each.with_others.votes else None,
                }
                for name, each in self.annotators.items()
            },
        }


def one_sided(found: Share, share: float, p: float) -> bool:
    """Whether one side wins more often than `share`, with a p-value below `p`."""
    return max(found.share, 1 - found.share) > share and sign_test(found.wins, found.votes) < p


def find_bias(survey: Survey) -> Bias:
    """All of it."""
    wins = survey.sizes.wins
    limits = [
        f"up to {LEADS[0]}",
        *(f"{a} to {b}" for a, b in zip(LEADS, LEADS[1:], strict=False)),
        f"over {LEADS[-1]}",
    ]
    decided, first = survey.column("said") != 0, survey.column("shown_first")
    known = decided & (first >= 0)
    who = survey.column("annotator")
    tallied = Together(survey)
    annotators = {
        name: Annotator(
            int((who == number).sum()),
            Share(int(first[known & (who == number)].sum()), int((known & (who == number)).sum())),
            tallied.with_others(number),
        )
        for name, number in survey.names.items()
    }
    return Bias(
        longer=Share(int(wins[:, 1].sum()), int(wins.sum())),
        longer_by_lead={
            lead: Share(int(won), int(won + lost)) for lead, (lost, won) in zip(limits, wins, strict=True) if won + lost
        },
        first_shown=Share(int(first[known].sum()), int(known.sum())),
        annotators=annotators,
        agreement=agreement(tallied.tallies),
    )


class Together:
    """Pairs with votes of named annotators; of one annotator's votes on one pair the last counts."""

    def __init__(self, survey: Survey) -> None:
        rows = np.flatnonzero(survey.column("annotator") >= 0)[::-1]
        unit, who, said = (survey.column(name)[rows] for name in ("unit", "annotator", "said"))
        _, last = np.unique(np.stack([unit, who.astype(np.uint64)], axis=1), axis=0, return_index=True)
        self.who: NDArray[Any] = who[last]
        self.said: NDArray[Any] = said[last]
        _, self.pair = np.unique(unit[last], return_inverse=True)
        self.tallies = np.zeros((int(self.pair.max(initial=-1)) + 1, 3), np.int64)  # against, tie, for
        np.add.at(self.tallies, (self.pair, self.said.astype(np.int64) + 1), 1)

    def with_others(self, annotator: int) -> Share:
        """On how many pairs an annotator's direction is that of most others there; ties have none."""
        own = (self.who == annotator) & (self.said != 0)
        side = self.said[own].astype(np.int64)
        lead = self.tallies[self.pair[own], side + 1] - 1 - self.tallies[self.pair[own], 1 - side]
        return Share(int((lead > 0).sum()), int((lead != 0).sum()))
