"""Votes of all batches as arrays: what each says, by whom and of what, and what can be measured of it."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.annotators.tables import FIRST, SECOND, TIE, Floats, Integers, is_older, key_of
from data.drift.batches import Batched
from data.drift.features import Differences
from data.drift.preferences import FOLDS, Features
from rlhf.errors import DataError

LEAST_SECONDS = 0.1
# What is measured of single votes; nan where it says nothing of one, such as who wins of a tie.
HABITS = ("ties", "first shown wins", "longer wins", "seconds")


@dataclass(frozen=True)
class BatchedVotes:
    """Equal index, equal vote; batches are numbered in their order."""

    names: tuple[str, ...]  # of batches
    batch: Integers
    prompt: Integers
    pair: Integers
    annotator: Integers  # -1: unnamed
    answer: Integers  # FIRST, SECOND, TIE of the pair, in the order of hashes
    time: Floats  # nan: unknown
    habits: dict[str, Floats]
    features: Features
    repeated: int  # votes that somebody with a name has cast again later, on the same pair in the same batch

    def __len__(self) -> int:
        """How many votes."""
        return len(self.batch)

    def of(self, batch: int) -> NDArray[np.bool_]:
        """[votes]: whether they are of a batch."""
        mine: NDArray[np.bool_] = self.batch == batch
        return mine


def gather(batched: Iterable[Batched]) -> BatchedVotes:
    """The table, the newest of each named annotator on each pair of a batch: by time, or the one read last.

    Raises DataError where there is no vote.
    """
    names: dict[str, int] = {}
    prompts: dict[str, int] = {}
    annotators: dict[str, int] = {}
    pairs: dict[bytes, int] = {}
    newest: dict[tuple[int, int, int], int] = {}
    rows: list[tuple[int, int, int, int, int, int]] = []
    measured: list[tuple[float, ...]] = []
    differences = Differences()
    kept: list[bool] = []
    for name, placed in batched:
        vote = placed.comparison
        keys = key_of(vote.prompt, vote.chosen), key_of(vote.prompt, vote.rejected)
        first_is_chosen = keys[0] < keys[1]
        batch = names.setdefault(name, len(names))
        pair = pairs.setdefault(b"".join(sorted(keys)), len(pairs))
        who = -1 if vote.annotator is None else annotators.setdefault(vote.annotator, len(annotators))
        text = vote.prompt.text
        answer = TIE if vote.tie else FIRST if first_is_chosen else SECOND
        fold = zlib.crc32(text.encode()) % FOLDS
        counts = True
        if who >= 0:
            before = newest.get((batch, pair, who))
            counts = before is None or not is_older(vote.time, measured[before][0])
            if before is not None:
                kept[before] = not counts
            if counts:
                newest[batch, pair, who] = len(kept)
        kept.append(counts)
        rows.append((batch, prompts.setdefault(text, len(prompts)), pair, who, answer, fold))
        longer = len(vote.chosen) - len(vote.rejected)
        measured.append(
            (
                math.nan if vote.time is None else vote.time,
                float(vote.tie),
                math.nan if vote.tie or vote.chosen_shown_first is None else float(vote.chosen_shown_first),
                math.nan if vote.tie or not longer else float(longer > 0),
                math.nan if vote.seconds is None else math.log(max(vote.seconds, LEAST_SECONDS)),
            )
        )
        differences.add(vote)
    if not kept:
        raise DataError("no votes; give files that hold some")
    keep = np.array(kept, bool)
    table = np.array(rows, np.int64).reshape(-1, 6)[keep]
    values = np.array(measured, float).reshape(-1, 5)[keep]
    texts, form = differences.matrix()
    return BatchedVotes(
        names=tuple(names),
        batch=table[:, 0],
        prompt=table[:, 1],
        pair=table[:, 2],
        annotator=table[:, 3],
        answer=table[:, 4],
        time=values[:, 0],
        habits={habit: values[:, i + 1] for i, habit in enumerate(HABITS)},
        features=Features(texts[keep], form, table[:, 5]),
        repeated=int((~keep).sum()),
    )


def in_order(votes: BatchedVotes) -> BatchedVotes:
    """The same votes with their batches by their earliest times, where all votes have one; else by their names.

    By names as people read them: "week 2" is before "week 10".
    """
    earliest = np.zeros(len(votes.names))
    if not np.isnan(votes.time).any():
        earliest[:] = np.inf
        np.minimum.at(earliest, votes.batch, votes.time)
    order = sorted(range(len(votes.names)), key=lambda i: (earliest[i], _as_read(votes.names[i])))
    place = np.argsort(order)
    return replace(votes, names=tuple(votes.names[i] for i in order), batch=place[votes.batch])


def _as_read(name: str) -> list[tuple[int, str]]:
    """Texts and numbers in turn; of two numbers the one with more digits is greater."""
    parts = [part.lstrip("0") if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]
    return [(i % 2 * len(part), part) for i, part in enumerate(parts)]
