"""Which annotators and which pairs need a look, and why: a line each.

A habit is worth a line only if an interval or a test says that it is no accident. The thresholds stand in
docs/labelling.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from data.labelling.ledger import Entry
from data.labelling.votes import Account, Judged
from rlhf.analysis.statistics import wilson_interval

GOLD_WANTED = 0.8  # the upper end of an annotator's interval of right gold answers should reach it
LEFT_BAND = 0.1  # by which the share of votes for the response shown first may differ from one half
FAST_SHARE = 0.4  # of the median time of the other annotators
OFTEN = 0.2  # share of skips, and of ties above the others' share
FEWEST = 10  # votes, before anything is said of an annotator's habits
BEHIND = 0.1  # by which agreement with others may lie below the median of theirs
DRIFT_P = 0.05  # over all tests of drift together (Bonferroni)
CONTESTED = 3  # votes on a pair, before it counts as contested
LISTED = 10  # gold pairs with a line of their own


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval."""

    share: float | None
    interval: tuple[float, float]
    of: int

    @classmethod
    def counted(cls, hits: int, of: int) -> Share:
        """Wilson's interval, for independent cases."""
        return cls(hits / of if of else None, wilson_interval(hits, of), of)


@dataclass(frozen=True)
class Drift:
    """What changed from the first half of somebody's votes to the second."""

    what: str
    before: float
    after: float
    p: float  # of a permutation test, for this one alone


@dataclass(frozen=True)
class Habits:
    """One annotator."""

    annotator: str
    name: str  # as the server knows them
    classes: Mapping[str, int]
    gold: Share  # right answers on gold pairs
    agreement: Share  # with other votes on the same pairs
    seconds: float | None  # median of a vote
    tie: Share
    skip: Share
    first: Share  # of votes that are no ties, for the response shown first
    drift: Sequence[Drift]


def of_annotators(habits: Sequence[Habits]) -> list[str]:
    """Whose votes need a look, and why."""
    lines = []
    tests = sum(len(each.drift) for each in habits)
    for each in habits:
        others = [other for other in habits if other is not each]
        lines += [f"{each.name}: {reason}" for reason in _reasons(each, others, DRIFT_P / max(tests, 1))]
    return lines


def _reasons(habits: Habits, others: Sequence[Habits], p: float) -> list[str]:
    found = []
    low, high = habits.gold.interval
    if habits.gold.of >= FEWEST and high < 0.5:
        found.append(f"votes against the gold answers ({_told(habits.gold)}): asks what the page means, or cheats")
    elif habits.gold.of >= FEWEST and high < GOLD_WANTED:
        found.append(f"misses gold answers ({_told(habits.gold)})")
    elsewhere = [other.agreement.share for other in others if other.agreement.share is not None]
    if habits.agreement.of >= FEWEST and elsewhere and habits.agreement.interval[1] < median(elsewhere) - BEHIND:
        found.append(f"agrees less with others than they do ({_told(habits.agreement)})")
    low, high = habits.first.interval
    if habits.first.of >= FEWEST and (low > 0.5 + LEFT_BAND or high < 0.5 - LEFT_BAND):
        side = "first" if low > 0.5 else "second"
        found.append(f"prefers the response shown {side} whatever it says ({_told(habits.first)} for the first)")
    times = [other.seconds for other in others if other.seconds is not None]
    voted = habits.classes["valid"] + habits.classes["tie"]
    if voted >= FEWEST and times and habits.seconds is not None and habits.seconds < FAST_SHARE * median(times):
        found.append(f"takes {habits.seconds:.1f} s for a vote, where others take {median(times):.1f} s")
    ties = [other.tie.share for other in others if other.tie.share is not None]
    if habits.tie.of >= FEWEST and ties and habits.tie.interval[0] > median(ties) + OFTEN:
        found.append(f"says tie where others decide ({_told(habits.tie)})")
    if habits.skip.of >= FEWEST and habits.skip.interval[0] > OFTEN:
        found.append(f"skips much ({_told(habits.skip)})")
    for drift in habits.drift:
        if drift.p < p:
            found.append(f"{drift.what} went from {drift.before:.2f} to {drift.after:.2f} (p {drift.p:.4f})")
    return found


def of_pairs(by_pair: Mapping[str, Sequence[Judged]], entries: Mapping[str, Entry]) -> list[str]:
    """Gold pairs that most get wrong, and pairs on which no two agree."""
    lines: list[str] = []
    contested = 0
    for number, votes in by_pair.items():
        said = Counter(vote.prefers for vote in votes)
        answer = entries[number].pair.answer
        if len(votes) >= CONTESTED and answer is not None and said[answer] < len(votes) / 2 and len(lines) < LISTED:
            lines.append(f"gold pair {number}: {said[answer]} of {len(votes)} give its answer; is the answer right?")
        contested += len(votes) >= CONTESTED and max(said.values()) <= len(votes) / 2
    if contested:
        lines.append(
            f"{contested:,} pairs with {CONTESTED} votes or more have no majority: label them again, or drop them"
        )
    return lines


def of_classes(account: Account) -> list[str]:
    """Annotations that no page can have made, and what was changed or removed behind its author's back."""
    counts = account.counts()
    edited = [each for each in [*account.judged, *account.overwritten] if each.annotation.kind == "edited"]
    editors = Counter(each.annotation.why for each in edited)
    lines = [f"{count:,} annotations {why} than the annotator" for why, count in editors.most_common()]
    if counts["malformed"]:
        reasons = Counter(each.annotation.why for each in account.judged if each.annotation.kind == "malformed")
        reason, _ = reasons.most_common(1)[0]
        lines.append(f"{counts['malformed']:,} malformed annotations, such as: {reason}")
    if counts["deleted"]:
        lines.append(f"{counts['deleted']:,} annotations are gone from the server; rejects.jsonl has them")
    return lines


def _told(share: Share) -> str:
    low, high = share.interval
    return f"{share.share or 0.0:.2f}, 95 % interval {low:.2f} to {high:.2f}, of {share.of}"
