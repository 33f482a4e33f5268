"""Rated texts, and the comparisons that they hold: of two texts the one with the higher rating was preferred.

Texts that answer the same prompt are compared with each other, every pair of them, and only as one annotator rated
them. Texts without a prompt of their own (rated sentences) take the recipe's, `prompt: ...`; then every text stands in
one pair, with a partner that the seed draws, and texts are split into train and test by themselves, before they are
paired: the prompt is the same for all, so its hash would put all on one side. Equal ratings make a tie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from data.fields import name_of, need, number_of, prompt_of, text_of
from data.splits import stable_random
from rlhf.types import Comparison, Prompt

# A mean that was rounded for people still is the mean of its ratings.
_ROUNDING = 5e-3


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


def pairs(
    ratings: Sequence[Rating], held_out: Sequence[bool], prompt: str | None, seed: int
) -> Iterator[tuple[Comparison, str]]:
    """Comparisons of rated texts on the same side, each with what decides its side."""
    groups: dict[tuple[str | None, str | None, bool], list[int]] = {}
    for index, (rating, held) in enumerate(zip(ratings, held_out, strict=True)):
        groups.setdefault((rating.group, rating.annotator, held), []).append(index)
    for (group, annotator, _), members in groups.items():
        order = stable_random(f"{seed}/pairs").permutation(len(members))
        partners = combinations(members, 2) if group is not None else _neighbours([members[i] for i in order], ratings)
        for one, other in partners:
            first, second = ratings[one], ratings[other]
            if first.text != second.text:
                yield _compare(first, second, prompt, annotator), first.side


def _neighbours(order: Sequence[int], ratings: Sequence[Rating]) -> Iterator[tuple[int, int]]:
    """Each text with the next; texts that read the same wait for one that does not."""
    waiting: list[int] = []
    for index in order:
        if waiting and ratings[waiting[-1]].text != ratings[index].text:
            yield waiting.pop(), index
        else:
            waiting.append(index)


def _compare(one: Rating, other: Rating, prompt: str | None, annotator: str | None) -> Comparison:
    better, worse = (one, other) if one.score >= other.score else (other, one)
    asked = better.prompt or Prompt(prompt or "")
    return Comparison(asked, better.text, worse.text, tie=one.score == other.score, annotator=annotator)
