"""Votes as arrays: who said what of which pair. Texts stay where they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.formats import as_record
from rlhf.types import Comparison, Prompt

FIRST, SECOND, TIE = 0, 1, 2
UNNAMED = "(unnamed)"  # whoever voted without a name, all taken for one

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class VoteTable:
    """Votes on pairs. Which response of a pair is the first one follows from their hashes, so it says nothing."""

    pair: Integers  # [votes]
    annotator: Integers  # [votes]
    answer: Integers  # [votes] FIRST, SECOND or TIE
    turned: NDArray[np.bool_]  # [votes] the pair's second response was shown first
    weight: Floats  # [votes]
    responses: Integers  # [pairs, 2] numbers of the first and the second response
    origin: Integers  # [pairs] index, among all that were read, of a vote on the pair
    first_was_chosen: NDArray[np.bool_]  # [pairs] that vote has the first response as its chosen one
    names: tuple[str, ...]  # of annotators
    repeated: int  # votes that somebody with a name has cast again later, on the same pair

    @property
    def pairs(self) -> int:
        """How many pairs."""
        return len(self.responses)

    @property
    def signs(self) -> Floats:
        """[votes]: 1 for the first response, -1 for the second, 0 for a tie."""
        return np.array([1.0, -1.0, 0.0])[self.answer]

    def without(self, annotator: int) -> NDArray[np.bool_]:
        """[votes]: whether somebody else cast it."""
        others: NDArray[np.bool_] = self.annotator != annotator
        return others


class _Numbers(dict[bytes | str, int]):
    """Numbers in order of appearance."""

    def of(self, key: bytes | str) -> int:
        return self.setdefault(key, len(self))


def tabulate(votes: Iterable[Comparison]) -> VoteTable:
    """The table of votes, the newest of each named annotator on each pair: by time, or the last where one has none."""
    pairs, responses, names = _Numbers(), _Numbers(), _Numbers()
    rows: dict[tuple[int, int, int], tuple[int, bool, float]] = {}
    times: dict[tuple[int, int, int], float | None] = {}
    ends: list[tuple[int, int]] = []
    origins: list[tuple[int, bool]] = []
    repeated = 0
    for number, vote in enumerate(votes):
        keys = key_of(vote.prompt, vote.chosen), key_of(vote.prompt, vote.rejected)
        first_is_chosen = keys[0] < keys[1]
        first, second = sorted(keys)
        pair = pairs.of(first + second)
        if pair == len(origins):
            ends.append((responses.of(first), responses.of(second)))
            origins.append((number, first_is_chosen))
        annotator = names.of(UNNAMED if vote.annotator is None else vote.annotator)
        row = pair, annotator, number if vote.annotator is None else -1
        repeated += row in rows
        if row in rows and is_older(vote.time, times[row]):
            continue
        rows.pop(row, None)
        times[row] = vote.time
        answer = TIE if vote.tie else FIRST if first_is_chosen else SECOND
        # Where the order was not recorded the first response, which a hash picks, counts as the one shown first.
        turned = vote.chosen_shown_first is not None and vote.chosen_shown_first != first_is_chosen
        rows[row] = answer, turned, vote.weight
    known, cast = np.array(list(rows), np.int64).reshape(-1, 3), list(rows.values())
    return VoteTable(
        pair=known[:, 0],
        annotator=known[:, 1],
        answer=np.array([answer for answer, _, _ in cast], np.int64),
        turned=np.array([turned for _, turned, _ in cast], bool),
        weight=np.array([weight for _, _, weight in cast], float),
        responses=np.array(ends, np.int64).reshape(-1, 2),
        origin=np.array([number for number, _ in origins], np.int64),
        first_was_chosen=np.array([chosen for _, chosen in origins], bool),
        names=tuple(str(name) for name in names),
        repeated=repeated,
    )


def is_older(time: float | None, than: float | None) -> bool:
    """Whether a vote that was read after another was cast before it; where one has no time it was not."""
    return time is not None and than is not None and time < than


def key_of(prompt: Prompt, response: str) -> bytes:
    """16 bytes that two different responses, or the same one to two prompts, never share."""
    text = json.dumps([as_record(prompt)["prompt"], response])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
