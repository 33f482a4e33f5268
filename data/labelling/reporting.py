"""How labelling goes: progress, agreement, each annotator's habits, and who or what needs attention.

Everything follows from the files of a project's directory; the server is not asked.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.labelling.annotations import CLASSES
from data.labelling.attention import DRIFT_P, Drift, Habits, Share, of_annotators, of_classes, of_pairs
from data.labelling.ledger import ANNOTATORS, Ledger
from data.labelling.state import State
from data.labelling.votes import Account, Judged, account_of
from rlhf.analysis.agreement import agreement, tallied
from rlhf.analysis.statistics import bootstrap_interval

DRIFT_FEWEST, DRIFT_MEASURES = 20, 4
PERMUTATIONS, MOST_PERMUTATIONS, ENOUGH_HITS = 2000, 200_000, 20
FEWEST_RESAMPLES, MOST_RESAMPLES, DRAWS = 400, 2000, 4_000_000


@dataclass(frozen=True)
class Report:
    """What `rlhf label report` says."""

    title: str
    pairs: int
    pairs_with_votes: int
    votes_per_pair: Mapping[int, int]
    kinds: Mapping[str, tuple[int, int]]  # of prompts: pairs with votes, pairs
    classes: Mapping[str, int]
    alpha: float | None
    alpha_interval: tuple[float, float] | None
    same: Share
    annotators: Sequence[Habits]
    attention: Sequence[str]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def report_of(ledger: Ledger) -> tuple[Report, Account]:
    """The report of a project as it was last pulled, and the annotations behind it."""
    project = ledger.require_project()
    state = State.load(ledger.directory)
    account = account_of(state.tasks.values(), ledger.entries, project.dimensions)
    votes = account.votes
    by_pair: dict[str, list[Judged]] = defaultdict(list)
    for vote in votes:
        by_pair[_pair(vote)].append(vote)
    found = agreement(tallied((_pair(vote), vote.prefers) for vote in votes))
    habits = habits_of(account, by_pair, names_of(ledger))
    kinds: dict[str, tuple[int, int]] = {}
    for number, entry in sorted(ledger.entries.items(), key=lambda item: item[1].pair.kind or ""):
        if entry.pair.kind is not None:
            voted, of = kinds.get(entry.pair.kind, (0, 0))
            kinds[entry.pair.kind] = (voted + (number in by_pair), of + 1)
    return (
        Report(
            title=project.title,
            pairs=len(ledger.entries),
            pairs_with_votes=len(by_pair),
            votes_per_pair=dict(sorted(Counter(map(len, by_pair.values())).items())),
            kinds=kinds,
            classes=account.counts(),
            alpha=found.alpha if found else None,
            alpha_interval=found.alpha_ci if found else None,
            same=Share(found.share, found.share_ci, found.units) if found else Share(None, (0.0, 1.0), 0),
            annotators=habits,
            attention=[*of_annotators(habits), *of_pairs(by_pair, ledger.entries), *of_classes(account)],
        ),
        account,
    )


def habits_of(account: Account, by_pair: Mapping[str, Sequence[Judged]], names: Mapping[str, str]) -> list[Habits]:
    """All annotators, those with most votes first."""
    of_each: dict[str, list[Judged]] = defaultdict(list)
    for each in account.judged:
        of_each[each.annotation.annotator].append(each)
    # The least p that a test can give must lie well below the threshold, which all tests share.
    most = min(max(PERMUTATIONS, round(2 * DRIFT_MEASURES * len(of_each) / DRIFT_P)), MOST_PERMUTATIONS)
    found = []
    for annotator, said in of_each.items():
        counts = Counter(each.annotation.kind for each in said)
        votes = [each for each in said if each.annotation.kind in ("valid", "tie")]
        gold = [_is_right(vote) for vote in votes if vote.entry is not None and vote.entry.pair.answer is not None]
        sides = [vote.annotation.choice == "A" for vote in votes if vote.annotation.choice != "tie"]
        seconds = [vote.annotation.seconds for vote in votes if vote.annotation.seconds is not None]
        decided = len(votes) + counts["skipped"]
        found.append(
            Habits(
                annotator=annotator,
                name=names.get(annotator, annotator),
                classes={kind: counts[kind] for kind in CLASSES},
                gold=Share.counted(sum(gold), len(gold)),
                agreement=with_others(votes, by_pair),
                seconds=median(seconds) if seconds else None,
                tie=Share.counted(counts["tie"], len(votes)),
                skip=Share.counted(counts["skipped"], decided),
                first=Share.counted(sum(sides), len(sides)),
                drift=drift_of(votes, by_pair, most),
            )
        )
    return sorted(found, key=lambda habits: (-habits.classes["valid"] - habits.classes["tie"], habits.annotator))


def with_others(votes: Sequence[Judged], by_pair: Mapping[str, Sequence[Judged]]) -> Share:
    """How often others say the same of a pair; the interval is a bootstrap over pairs."""
    shares = [share for vote in votes if (share := _shared(vote, by_pair)) is not None]
    if not shares:
        return Share(None, (0.0, 1.0), 0)
    # All resamples are in memory at once; of many pairs, fewer of them tell the same.
    resamples = min(MOST_RESAMPLES, max(DRAWS // len(shares), FEWEST_RESAMPLES))
    return Share(sum(shares) / len(shares), bootstrap_interval(shares, 0, resamples), len(shares))


def drift_of(votes: Sequence[Judged], by_pair: Mapping[str, Sequence[Judged]], most: int = PERMUTATIONS) -> list[Drift]:
    """The first half of somebody's votes against the second, by permutation tests of the difference of means.

    most: permutations of one test, which ends sooner where many are as extreme (Besag & Clifford 1991).
    """
    votes = sorted(votes, key=lambda vote: vote.annotation.time)
    measures: dict[str, Callable[[Judged], float | None]] = {
        "log seconds": lambda vote: math.log(max(vote.annotation.seconds, 0.1)) if vote.annotation.seconds else None,
        "agreement with the majority of the others": lambda vote: _with_majority(vote, by_pair),
        "ties": lambda vote: float(vote.annotation.choice == "tie"),
        "votes for the response shown first": lambda vote: (
            None if vote.annotation.choice == "tie" else float(vote.annotation.choice == "A")
        ),
    }
    found = []
    for what, measure in measures.items():
        values = [value for vote in votes if (value := measure(vote)) is not None]
        if len(values) < DRIFT_FEWEST or len(set(values)) == 1:
            continue
        half = len(values) // 2
        early, late = np.array(values[:half]), np.array(values[half:])
        found.append(Drift(what, float(early.mean()), float(late.mean()), _permuted(np.array(values), half, most)))
    return found


def _permuted(pool: NDArray[np.float64], half: int, most: int) -> float:
    """The p-value of the difference between the means of the first half and the rest."""
    difference = abs(pool[half:].mean() - pool[:half].mean())
    generator, total = np.random.default_rng(0), pool.sum()
    hits = 0
    for drawn in range(1, most + 1):
        # The first half's mean says the second's, for the mean of all stays.
        first = generator.permutation(pool)[:half].sum()
        hits += int(abs((total - first) / (len(pool) - half) - first / half) >= difference - 1e-12)
        if hits == ENOUGH_HITS:
            return hits / drawn
    return (hits + 1) / (most + 1)


def names_of(ledger: Ledger) -> dict[str, str]:
    """Who the annotators are, as the last pull has seen."""
    try:
        found: dict[str, str] = json.loads((ledger.directory / ANNOTATORS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _pair(vote: Judged) -> str:
    assert vote.entry is not None
    return vote.entry.pair.id


def _is_right(vote: Judged) -> bool:
    return vote.entry is not None and vote.prefers == vote.entry.pair.answer


def _shared(vote: Judged, by_pair: Mapping[str, Sequence[Judged]]) -> float | None:
    """Of the other votes on a pair, the share that says the same; None where there is no other."""
    others = [other for other in by_pair[_pair(vote)] if other is not vote]
    return sum(other.prefers == vote.prefers for other in others) / len(others) if others else None


def _with_majority(vote: Judged, by_pair: Mapping[str, Sequence[Judged]]) -> float | None:
    """Whether a vote says what most of the others on its pair say; None where there is no such majority."""
    said = Counter(other.prefers for other in by_pair[_pair(vote)] if other is not vote)
    (most, count), *_ = said.most_common(1) or [(None, 0)]
    return float(vote.prefers == most) if 2 * count > said.total() else None
