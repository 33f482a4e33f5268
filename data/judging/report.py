"""How a judge judges: what the order does to it, and how far it agrees with people."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data.judging.questions import in_order
from data.judging.votes import Verdict
from data.labelling.pairs import Answer as Preference
from data.labelling.pairs import Pair
from data.locations import files_of
from data.reading import Reading
from rlhf.analysis.agreement import agreement, tallied
from rlhf.analysis.statistics import Z_95, wilson_interval
from rlhf.config import SourceConfig
from rlhf.errors import DataError
from rlhf.types import Comparison

JUDGES = "judge:"  # how the annotators begin that are no people


@dataclass(frozen=True)
class Bias:
    """What showing a pair the other way round does to the answers."""

    pairs: int  # with two answers that can be read
    consistent: int  # answered alike in both orders
    to_first: int  # moved towards the response shown first
    to_second: int
    consistency: float
    consistency_ci: tuple[float, float]  # 95 %, Wilson
    bias: float  # (to_first - to_second) / pairs: 1 where always the first wins, 0 without a preference
    bias_ci: tuple[float, float]  # 95 %, Agresti & Min


def position_bias(verdicts: Sequence[Verdict]) -> Bias | None:
    """Of pairs asked in both orders; None where there are none."""
    leans = Counter(verdict.lean for verdict in verdicts)
    pairs = len(verdicts)
    if not pairs:
        return None
    to_first, to_second, same = leans[1], leans[-1], leans[0]
    interval = paired_difference_interval(to_first, to_second, pairs)
    return Bias(
        pairs, same, to_first, to_second, same / pairs, wilson_interval(same, pairs),
        (to_first - to_second) / pairs, interval,
    )  # fmt: skip


def paired_difference_interval(more: int, fewer: int, pairs: int) -> tuple[float, float]:
    """95 % interval of (more - fewer) / pairs, of pairs that differ one way, the other, or not at all.

    Wald's, with half a pair added to each of the four cells, which holds its level in small samples and where no pair
    differs (Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions").
    """
    total = pairs + 2
    difference = (more - fewer) / total
    half = Z_95 * math.sqrt(max(0.0, (more + fewer + 1) / total - difference**2) / total)
    return max(-1.0, difference - half), min(1.0, difference + half)


@dataclass(frozen=True)
class WithPeople:
    """A judge beside people, on the pairs that both have voted on."""

    pairs: int  # whose people have one answer, by the most votes
    undecided: int  # pairs whose people have none: left out
    same: int  # of all pairs, ties counted as answers of their own
    share: float
    share_ci: tuple[float, float]  # 95 %, Wilson
    decided: int  # pairs where neither says tie
    decided_same: int
    decided_share: float | None
    decided_ci: tuple[float, float]
    alpha: float | None  # Krippendorff's, of judge and people as two annotators; None where nothing could differ
    alpha_ci: tuple[float, float] | None
    people_alpha: float | None  # of people among themselves on these pairs: what could be hoped for

    def record(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def people_votes(names: Sequence[str], directory: str | None, drop_bad: bool) -> dict[str, list[Preference]]:
    """What people say of each pair, in the order of its texts.

    Raises DataError where no vote is of people, and for bad records unless they are dropped.
    """
    votes: dict[str, list[Preference]] = defaultdict(list)
    for vote in itertools.chain.from_iterable(_comparisons(name, directory, drop_bad) for name in names):
        if not (vote.annotator or "").startswith(JUDGES):
            pair = Pair(vote.prompt, vote.chosen, vote.rejected)
            first = in_order(pair).first == vote.chosen
            votes[pair.id].append("tie" if vote.tie else "first" if first else "second")
    if not votes:
        raise DataError(f"--people {', '.join(names)}: no vote of people; give comparisons that they have made")
    return dict(votes)


def _comparisons(name: str, directory: str | None, drop_bad: bool) -> Iterator[Comparison]:
    source = SourceConfig(path=name, bad_records="drop" if drop_bad else "fail")
    try:
        for vote in Reading(source, files_of(name, directory), "comparisons"):
            if isinstance(vote, Comparison):
                yield vote
    except DataError as error:
        lines = (problem.replace("set bad_records: drop", "give --drop-bad") for problem in error.problems)
        raise DataError(*(f"--people {line}" for line in lines)) from error


def with_people(verdicts: Sequence[Verdict], votes: Mapping[str, Sequence[Preference]]) -> WithPeople | None:
    """How far a judge agrees with people; None where no pair is shared."""
    shared = [verdict for verdict in verdicts if verdict.pair.id in votes]
    sides = [(verdict, most(votes[verdict.pair.id])) for verdict in shared]
    both = [(verdict.pair.id, verdict.prefers, people) for verdict, people in sides if people is not None]
    if not both:
        return None
    same = sum(judge == people for _, judge, people in both)
    decided = [judge == people for _, judge, people in both if "tie" not in (judge, people)]
    said = [(pair, answer) for pair, *answers in both for answer in answers]
    known = agreement(tallied(said))
    among = agreement(tallied((verdict.pair.id, vote) for verdict in shared for vote in votes[verdict.pair.id]))
    return WithPeople(
        pairs=len(both),
        undecided=len(shared) - len(both),
        same=same,
        share=same / len(both),
        share_ci=wilson_interval(same, len(both)),
        decided=len(decided),
        decided_same=sum(decided),
        decided_share=sum(decided) / len(decided) if decided else None,
        decided_ci=wilson_interval(sum(decided), len(decided)),
        alpha=known.alpha if known else None,
        alpha_ci=known.alpha_ci if known else None,
        people_alpha=among.alpha if among else None,
    )


def most(votes: Sequence[Preference]) -> Preference | None:
    """The answer with the most votes; None where two have as many."""
    ranked = Counter(votes).most_common()
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else None
