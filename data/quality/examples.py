"""The first votes that repeat or contradict others, each with the one that it goes with, as people see them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from data.quality.minhash import Rows
from data.quality.repeats import Mask, Repeats
from data.quality.survey import EXAMPLES, Example, Survey, example_of
from data.quality.votes import Vote, Votes

TOLD = {
    "duplicate": "the same as the one at {}",
    "near_duplicate": "nearly the same as the one at {}",
    "contradiction": "voted the other way at {}",
    "near_contradiction": "nearly the same is voted the other way at {}",
    "leakage": "its prompt is in training at {}",
}


def examples_of_repeats(votes: Votes, found: Survey, repeats: Repeats) -> dict[str, list[Example]]:
    """Examples of each kind, fetched in a second pass, which ends with the last of them."""
    wanted = _wanted(found, repeats)
    fetched = fetch(votes, {row for pairs in wanted.values() for pair in pairs for row in pair})
    shown = {
        kind: [example_of(fetched[row], TOLD[kind].format(fetched[other].place)) for row, other in pairs]
        for kind, pairs in wanted.items()
    }
    shown["contradiction"] += shown.pop("near_contradiction")
    return shown


def fetch(votes: Votes, numbers: Collection[int]) -> dict[int, Vote]:
    """Votes by their index."""
    last, found = max(numbers, default=-1), {}
    for number, vote in enumerate(votes.read() if numbers else ()):
        if number in numbers:
            found[number] = vote
        if number >= last:
            break
    return found


def _wanted(found: Survey, repeats: Repeats) -> dict[str, list[tuple[int, int]]]:
    """By kind the indices of votes, and of those that they go with."""
    wanted: dict[str, list[tuple[int, int]]] = {}
    for kind, mask in (
        ("duplicate", repeats.duplicate),
        ("near_duplicate", repeats.near_duplicate),
        ("leakage", repeats.leakage if repeats.leakage.any() else repeats.near_leakage),
    ):
        first = np.flatnonzero(mask)[:EXAMPLES]
        wanted[kind] = [(int(row), int(repeats.partners[kind][row])) for row in first]
    exact, near = repeats.contradiction, repeats.near_contradiction
    if not exact.any() and not near.any():
        exact, near = repeats.disagreement, repeats.near_disagreement
    opposite, nearly = list(_opposites(found, repeats, exact)), list(_nearly_opposite(repeats, near))
    nearly = nearly[: max(EXAMPLES // 2, EXAMPLES - len(opposite))]  # some of both, where there are both
    return {**wanted, "contradiction": opposite[: EXAMPLES - len(nearly)], "near_contradiction": nearly}


def _opposites(found: Survey, repeats: Repeats, opposed: Mask) -> Iterator[tuple[int, int]]:
    """Of the first opposed pairs the first vote, and the first in the other direction."""
    said, pair = found.column("said"), repeats.partners["pair"]
    for first in np.flatnonzero(repeats.pairs(opposed))[:EXAMPLES]:
        yield _opposite(np.flatnonzero((pair == first) & (said != 0)), said)


def _nearly_opposite(repeats: Repeats, opposed: Mask) -> Iterator[tuple[int, int]]:
    """The same of the first groups of nearly the same pairs, but for those that are opposed by themselves."""
    alone = ~(repeats.contradiction | repeats.disagreement) & (repeats.leaning != 0)
    for first in repeats.groups(opposed)[:EXAMPLES]:
        yield _opposite(np.flatnonzero((repeats.partners["alike"] == first) & alone), repeats.leaning)


def _opposite(rows: Rows, direction: NDArray[np.int8]) -> tuple[int, int]:
    return int(rows[0]), int(rows[direction[rows] != direction[rows[0]]][0])
