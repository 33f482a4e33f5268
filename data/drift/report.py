"""Each batch against those before it, or all others: what has changed, and whether that may be chance.

    from data.drift.report import Options, drift_of
    drift_of(gather(batched), Options()).drifted

Show it: rlhf data drift old.jsonl new.jsonl
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.annotators.tables import TIE, Floats
from data.drift.permutation import Lots, difference_p, holm
from data.drift.preferences import margins, surplus
from data.drift.same_pairs import Answers, compare
from data.drift.table import HABITS, BatchedVotes
from rlhf.errors import ConfigError

FEWEST = 20  # votes, and half as many prompts, on either side: below, there is no test; see also same_pairs
PERMUTATIONS, MOST_PERMUTATIONS = 2000, 200_000
PREFERENCES, SAME_PAIRS = "preferences", "same pairs"
MEASURES = (PREFERENCES, *HABITS, SAME_PAIRS)
MEANING = {
    PREFERENCES: "votes that a model of the other batches predicts",
    "ties": "of all votes",
    "first shown wins": "of votes for one side whose order is known",
    "longer wins": "of votes for one side",
    "seconds": "geometric mean",
    SAME_PAIRS: "equal ones of two people's votes on a pair: on one side, or one before and one here",
}

Against = Literal["before", "others"]


@dataclass(frozen=True)
class Options:
    """How batches are compared."""

    against: Against = "before"
    level: float = 0.05  # chance that a report names any batch where nothing has changed
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """A share, or seconds, with its 95 % interval."""

    value: float
    interval: tuple[float, float]
    votes: int
    expected: float | None = None  # of preferences: what the model expects of these pairs, if it is right


@dataclass(frozen=True)
class Change:
    """One measure of one batch."""

    measure: str
    before: Figure | None  # of the votes that the batch is compared with
    after: Figure
    p: float | None = None  # None: too few votes for a test
    adjusted: float | None = None  # by Holm, for all tests of the report
    drifted: bool = False
    same_annotators: tuple[float, float] | None = None  # before and after, of annotators who voted in both


@dataclass(frozen=True)
class Batch:
    """One batch; the first has nothing before it."""

    name: str
    votes: int
    prompts: int
    pairs: int
    annotators: int
    first: str | None  # when its first vote was cast, where all say so
    last: str | None
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Drift:
    """What `rlhf data drift` says."""

    options: Options
    tests: int
    repeated: int
    batches: tuple[Batch, ...]

    @property
    def drifted(self) -> list[tuple[Batch, Change]]:
        """What has changed more than by chance."""
        return [(batch, change) for batch in self.batches for change in batch.changes if change.drifted]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        named = list(dict.fromkeys(batch.name for batch, _ in self.drifted))
        return {"drift": bool(named), "drifted": named, **asdict(self)}


def drift_of(votes: BatchedVotes, options: Options) -> Drift:
    """All batches but the first (against those before), or all of them (against all others).

    Raises ConfigError where no test could reach the level, however much had changed.
    """
    numbers = range(len(votes.names))
    first = 1 if options.against == "before" else 0
    # The least p that a test can give must lie well below the level, which all tests share.
    most = min(MOST_PERMUTATIONS, PERMUTATIONS + math.ceil(4 * len(MEASURES) * len(votes.names) / options.level))
    found: list[list[Change]] = []
    for number in numbers:
        after = votes.of(number)
        before = votes.batch < number if options.against == "before" else ~after
        if number < first:
            found.append(list(_alone(votes, after)))
        else:
            found.append(list(_changes(votes, before, after, most, options.seed)))
    told = [(i, j) for i, changes in enumerate(found) for j, change in enumerate(changes) if change.p is not None]
    if (least := len(told) / (most + 1)) >= options.level:
        raise ConfigError(
            f"--level={options.level:g}: {len(told)} tests of {most:,} permutations each cannot reach it; "
            f"give one above {least:.2g}, or fewer batches"
        )
    adjusted = holm([found[i][j].p or 0.0 for i, j in told])
    for (i, j), p in zip(told, adjusted, strict=True):
        found[i][j] = replace(found[i][j], adjusted=p, drifted=p < options.level)
    batches = tuple(_batch(votes, number, tuple(found[number])) for number in numbers)
    return Drift(options, len(told), votes.repeated, batches)


def _batch(votes: BatchedVotes, number: int, changes: tuple[Change, ...]) -> Batch:
    mine = votes.of(number)
    times = votes.time[mine]
    ends = None if np.isnan(times).any() else (times.min(), times.max())
    first, last = (None, None) if ends is None else (_day(float(end)) for end in ends)
    who = np.unique(votes.annotator[mine])
    prompts, pairs = (len(np.unique(column[mine])) for column in (votes.prompt, votes.pair))
    return Batch(votes.names[number], int(mine.sum()), prompts, pairs, int((who >= 0).sum()), first, last, changes)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _alone(votes: BatchedVotes, after: NDArray[np.bool_]) -> Iterator[Change]:
    """Habits of a batch that there is nothing to compare with."""
    for habit in HABITS:
        measured = after & ~np.isnan(votes.habits[habit])
        if measured.any():
            yield Change(habit, None, _figure(votes, habit, votes.habits[habit], measured))


def _changes(
    votes: BatchedVotes, before: NDArray[np.bool_], after: NDArray[np.bool_], most: int, seed: int
) -> Iterator[Change]:
    sided = votes.answer != TIE
    if enough(votes, before & sided) and enough(votes, after & sided):
        margin = margins(votes.features, before & sided, (before | after) & sided, seed)
        yield _change(votes, PREFERENCES, margin, (before, after), most, seed)
    for habit in HABITS:
        values = votes.habits[habit]
        if (after & ~np.isnan(values)).any():
            yield _change(votes, habit, values, (before, after), most, seed)
    either = np.flatnonzero(before | after)
    either = either[np.argsort(votes.batch[either], kind="stable")]  # of earlier batches' votes the newest counts
    answers = Answers(votes.pair[either], votes.annotator[either], votes.answer[either])
    if found := compare(answers, after[either], most, seed):
        within = None if found.within is None else _share(found.within)
        yield Change(SAME_PAIRS, within, _share(found.between), found.p)


def _change(
    votes: BatchedVotes,
    measure: str,
    values: Floats,
    sides: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    most: int,
    seed: int,
) -> Change:
    """One measure of values [votes], nan where it says nothing; sides: before and after."""
    before, after = (side & ~np.isnan(values) for side in sides)
    figures = [_figure(votes, measure, values, side) if side.any() else None for side in (before, after)]
    assert figures[1] is not None  # by the caller
    if not (enough(votes, before) and enough(votes, after)):
        return Change(measure, figures[0], figures[1])
    tested = surplus(values) if measure == PREFERENCES else values
    either = before | after
    p = difference_p(tested[either], votes.prompt[either], after[either], most, seed)
    common = np.intersect1d(votes.annotator[before], votes.annotator[after])
    same = np.isin(votes.annotator, common[common >= 0])
    known = [_figure(votes, measure, values, side & same).value for side in (before, after) if (side & same).any()]
    return Change(measure, figures[0], figures[1], p, same_annotators=(known[0], known[1]) if len(known) == 2 else None)


def enough(votes: BatchedVotes, measured: NDArray[np.bool_]) -> bool:
    """Whether there are votes and prompts enough for a test."""
    return int(measured.sum()) >= FEWEST and 2 * len(np.unique(votes.prompt[measured])) >= FEWEST


def _figure(votes: BatchedVotes, measure: str, values: Floats, measured: NDArray[np.bool_]) -> Figure:
    mine, prompt = values[measured], votes.prompt[measured]
    if measure == "seconds":
        lots = Lots.of(mine, prompt)
        low, high = lots.mean_interval()
        return Figure(math.exp(lots.mean), (math.exp(low), math.exp(high)), len(mine))
    if measure != PREFERENCES:
        return _share(Lots.of(mine, prompt))
    right = np.where(mine == 0, 0.5, mine > 0)
    expected = float((1 / (1 + np.exp(-np.abs(mine)))).mean())
    return replace(_share(Lots.of(right, prompt)), expected=expected)


def _share(lots: Lots) -> Figure:
    return Figure(lots.mean, lots.share_interval(), int(lots.count.sum()))
