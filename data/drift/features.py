"""What a linear model sees of a response: its form, and which of the commonest words it has."""

from __future__ import annotations

import math
import re
import zlib
from array import array
from dataclasses import dataclass, field

import numpy as np

from data.annotators.tables import Floats
from rlhf.types import Comparison

WORD = re.compile(r"\w+")
LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.M)
BUCKETS = 2**20  # of words' hashes
MOST_WORDS, FEWEST_VOTES = 200, 20  # words that tell chosen from rejected in so many votes


def form_of(prompt_words: frozenset[str], text: str, words: list[str]) -> list[float]:
    """Length, lines, lists, digits, marks, repetition, how much of the prompt comes back, whether it ends."""
    distinct = frozenset(words)
    return [
        math.log1p(len(text)),
        math.log1p(text.count("\n")),
        math.log1p(len(LISTED.findall(text))),
        math.log1p(sum(map(str.isdigit, text))),
        math.log1p(text.count("?")),
        math.log1p(text.count("!")),
        len(distinct) / max(1, len(words)),
        len(distinct & prompt_words) / max(1, len(prompt_words)),
        float(text.rstrip()[-1:] in set(".!?…\"')]")),
    ]


@dataclass
class Differences:
    """Features of chosen less those of rejected responses, gathered vote by vote."""

    form: list[list[float]] = field(default_factory=list)
    row: array[int] = field(default_factory=lambda: array("l"))
    word: array[int] = field(default_factory=lambda: array("l"))
    sign: array[int] = field(default_factory=lambda: array("b"))  # 1: the chosen response alone has the word

    def add(self, vote: Comparison) -> None:
        """One more vote."""
        asked = frozenset(WORD.findall(vote.prompt.text.lower()))
        words = [WORD.findall(text.lower()) for text in (vote.chosen, vote.rejected)]
        chosen, rejected = (
            form_of(asked, text, own) for text, own in zip((vote.chosen, vote.rejected), words, strict=True)
        )
        sides = frozenset(words[0]), frozenset(words[1])
        for only, sign in ((sides[0] - sides[1], 1), (sides[1] - sides[0], -1)):
            for word in only:
                self.row.append(len(self.form))
                self.word.append(zlib.crc32(word.encode()) % BUCKETS)
                self.sign.append(sign)
        self.form.append([a - b for a, b in zip(chosen, rejected, strict=True)])

    def matrix(self) -> tuple[Floats, int]:
        """[votes, features], each scaled to a root mean square of 1, and how many of them are of the form.

        Of one vote at least. Which words are in says nothing of who won: those by which most votes' responses differ.
        """
        form = np.array(self.form, float)
        row, word = np.array(self.row, np.int64), np.array(self.word, np.int64)
        known, number, counts = np.unique(word, return_inverse=True, return_counts=True)
        most = np.argsort(-counts, kind="stable")[:MOST_WORDS]
        most = most[counts[most] >= FEWEST_VOTES]
        column = np.full(len(known), -1)
        column[most] = np.arange(len(most))
        words = np.zeros((len(form), len(most)))
        kept = column[number] >= 0
        np.add.at(words, (row[kept], column[number[kept]]), np.array(self.sign, float)[kept])
        features = np.concatenate([form, words], axis=1)
        scale = np.sqrt((features**2).mean(axis=0))
        return features / np.where(scale > 0, scale, 1.0), form.shape[1]
