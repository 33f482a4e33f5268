"""Rated texts, and the comparisons that they hold: of two texts the one with the higher rating was preferred.

Texts that answer the same prompt are compared with each other, every pair of them, and only as one annotator rated
them. Texts without a prompt of their own (rated sentences) take the recipe's, `prompt: ...`; then every text stands in
one pair, with a partner that the seed draws, and texts are split into train and test by themselves, before they are
paired: the prompt is the same for all, so its hash would put all on one side. Equal ratings make a tie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from data.fields import name_of, need, number_of, prompt_of, text_of
from data.splits import stable_random
from rlhf.types import Comparison, Prompt

# A mean that was rounded for people still is the mean of its ratings.
_ROUNDING = 5e-3
ALONE = "one is another text of the same prompt or group, rated by the same annotator, on the same side of the split"


@dataclass(frozen=True)
class Rating:
    """What one annotator, or several in the mean, thought of one text."""

    text: str
    score: float
    prompt: Prompt | None = None  # None: the recipe's
    group: str | None = None  # texts of one group answer the same; None: compared with any other
    annotator: str | None = None

    @property
    def side(self) -> str:
        """What decides between train and test."""
        return self.text if self.group is None else self.group


def parse_rating(record: Mapping[str, Any]) -> list[Rating]:
    """{"text" or "response", "mean" or "rating" or "ratings"}, and "prompt" or "group", "annotator" where known."""
    text = text_of(record["text"] if "text" in record else need(record, "response"), "text")
    annotator = None if record.get("annotator") is None else name_of(record["annotator"], "annotator")
    if record.get("prompt") is None:
        group = None if record.get("group") is None else name_of(record["group"], "group")
        return [Rating(text, _score(record), None, group, annotator)]
    prompt = prompt_of(record)
    return [Rating(text, _score(record), prompt, prompt.text, annotator)]


def _score(record: Mapping[str, Any]) -> float:
    given = [name for name in ("mean", "rating") if name in record]
    if len(given) == 2:
        raise ValueError("mean and rating cannot both be the score; remove one of them")
    if "ratings" not in record:
        return number_of(need(record, given[0] if given else "mean"), given[0] if given else "mean")
    ratings = record["ratings"]
    if not isinstance(ratings, list) or not ratings:
        raise ValueError("ratings are not a list of numbers")
    mean = sum(number_of(rating, "ratings") for rating in ratings) / len(ratings)
    if not given:
        return number_of(mean, "the mean of ratings")
    score = number_of(record[given[0]], given[0])
    if abs(score - mean) > _ROUNDING * max(1.0, abs(mean)):
        raise ValueError(f"{given[0]}={score:g} is not the mean of its ratings, {mean:g}")
    return score


def parse_squality(record: Mapping[str, Any]) -> list[Rating]:
    """{"passage", "question", "response", "worker_id", "overall-rating"}: a summary that one worker rated."""
    group = f"{name_of(need(record, 'passage'), 'passage')}/{name_of(need(record, 'question'), 'question')}"
    score = number_of(need(record, "overall-rating"), "overall-rating")
    worker = name_of(need(record, "worker_id"), "worker_id")
    return [Rating(text_of(need(record, "response"), "response"), score, None, group, worker)]


class Partners:
    """Whether rated texts, told one after another, find somebody to be compared with: one of another wording."""

    def __init__(self) -> None:
        self._first: dict[bytes, bytes] = {}  # by the key of a group

    def found(self, rating: Rating, held: bool) -> bool:
        """Whether this text is of a group with a text before it that reads otherwise."""
        text = _hash(rating.text)
        return self._first.setdefault(_group_key(rating, held), text) != text


@dataclass
class Pairing:
    """Comparisons of rated texts on the same side, each with what decides its side; the account is complete after."""

    ratings: Sequence[Rating]
    held_out: Sequence[bool]
    prompt: str | None
    seed: int
    pairs: int = 0
    alone: int = 0  # texts that stand in no pair
    same: int = 0  # pairs within a group that are none, since both read the same

    def __iter__(self) -> Iterator[tuple[Comparison, str]]:
        """Group by group, in the order of their first texts."""
        for members in self._groups():
            grouped = self.ratings[members[0]].group is not None
            for first, second in self._within(members) if grouped else self._neighbours(members):
                self.pairs += 1
                yield _compare(first, second, self.prompt, first.annotator), first.side

    def notes(self, source: str) -> list[str]:
        """What people should know of it, a line each."""
        lines = []
        if self.alone:
            lines.append(f"{source}: {self.alone:,} of {len(self.ratings):,} rated texts have no partner; {ALONE}")
        if self.same:
            lines.append(f"{source}: {self.same:,} pairs of rated texts that read the same, left out")
        return lines

    def _groups(self) -> Iterator[list[int]]:
        """Indices of texts that may be compared with each other, by sorted hashes: a few bytes for each text."""
        keys = bytearray()
        for rating, held in zip(self.ratings, self.held_out, strict=True):
            keys += _group_key(rating, held)
        halves = np.frombuffer(keys, np.uint64).reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: within a group the texts stay in order
        ends = np.flatnonzero((halves[order[1:]] != halves[order[:-1]]).any(axis=1)) + 1
        starts = np.concatenate([[0], ends]) if len(order) else ends
        ends = np.append(ends, len(order))
        for number in np.argsort(order[starts]):
            yield order[starts[number] : ends[number]].tolist()

    def _within(self, members: list[int]) -> Iterator[tuple[Rating, Rating]]:
        """Every two of a group."""
        paired = False
        for one, other in combinations(members, 2):
            first, second = self.ratings[one], self.ratings[other]
            if first.text == second.text:
                self.same += 1
            else:
                paired = True
                yield first, second
        if not paired:
            self.alone += len(members)

    def _neighbours(self, members: list[int]) -> Iterator[tuple[Rating, Rating]]:
        """Each text with the next in an order that the seed draws; texts that read the same wait for another."""
        waiting: list[int] = []
        for position in stable_random(f"{self.seed}/pairs").permutation(len(members)):
            index = members[position]
            if waiting and self.ratings[waiting[-1]].text != self.ratings[index].text:
                yield self.ratings[waiting.pop()], self.ratings[index]
            else:
                waiting.append(index)
        self.alone += len(waiting)


def _group_key(rating: Rating, held: bool) -> bytes:
    """16 bytes that tell the texts that may be compared from all others."""
    return _hash(json.dumps([rating.group, rating.annotator, bool(held)]))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _compare(one: Rating, other: Rating, prompt: str | None, annotator: str | None) -> Comparison:
    better, worse = (one, other) if one.score >= other.score else (other, one)
    asked = better.prompt or Prompt(prompt or "")
    return Comparison(asked, better.text, worse.text, tie=one.score == other.score, annotator=annotator)
