"""What a source holds, counted in one pass: what `rlhf data show` tells."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.formats import USES, Example
from data.locations import few, files_of, not_read
from data.ratings import Rating
from data.reading import Reading
from data.records import Record, printable, shown
from data.splits import side_of
from rlhf.config import SourceConfig
from rlhf.types import Comparison, Demonstration, Prompt

SHOWN = 110  # characters of a field
ANNOTATORS = 12  # named; the others are counted together


@dataclass
class Inspection:
    """An account of a source."""

    path: str
    files: int
    format: str | None
    holds: str | None
    records: int
    examples: int
    bad: int
    problems: list[str]  # the first bad records, a line each, and how many more there are
    distinct_prompts: int
    ties: int
    annotators: dict[str, int]  # examples of each
    lengths: dict[str, dict[str, dict[str, int]]]  # text → unit → figure
    first: list[Record] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)  # what else lies in the directory
    rejected: int = 0  # completions, which are no demonstrations

    def facts(self) -> list[tuple[str, str]]:
        """Names and values, for people."""
        uses = " or ".join(USES[self.holds]) if self.holds else "nothing"
        found = [("format", f"{self.format}, usable as {uses}" if self.format else "none: no good record")]
        if self.files > 1:
            found.append(("files", f"{self.files:,}"))
        if self.not_read:
            found.append(("not read", few(self.not_read)))
        found.append(("records", f"{self.records:,}, {self.bad:,} of them bad"))
        if self.holds:
            found.append((self.holds, f"{self.examples:,}" + (f", {self.ties:,} of them ties" if self.ties else "")))
        if self.rejected:
            found.append(("rejected completions", f"{self.rejected:,}"))
        if self.distinct_prompts:
            found.append(("distinct prompts", f"{self.distinct_prompts:,}"))
        if self.annotators:
            named = [f"{printable(name)} {count:,}" for name, count in list(self.annotators.items())[:ANNOTATORS]]
            more = len(self.annotators) - len(named)
            found.append(("annotators", ", ".join(named) + (f", and {more:,} more" if more else "")))
        return found

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        first = [{"place": record.place, **record.fields} for record in self.first]
        return {**self.__dict__, "usable_as": list(USES[self.holds]) if self.holds else [], "first": first}


def inspect_source(source: SourceConfig, first: int, directory: str | None = None) -> Inspection:
    """Read a source and count; first: how many records to keep. Raises DataError where it cannot be read at all.

    Memory holds a few bytes of every example: hashes of prompts, and lengths.
    """
    reading = Reading(source, files_of(source.path, directory), kind=None, keep=first)
    lengths: dict[str, tuple[array[int], array[int]]] = {}
    annotators: Counter[str] = Counter()
    hashes = array("Q")
    ties = rejected = 0
    for example in reading:
        for name, text in texts_of(example).items():
            characters, words = lengths.setdefault(name, (array("L"), array("L")))
            characters.append(len(text))
            words.append(len(text.split()))
        if prompt := example if isinstance(example, Prompt) else example.prompt:
            hashes.append(side_of(prompt.text))
        if isinstance(example, Comparison | Rating) and example.annotator is not None:
            annotators[example.annotator] += 1
        ties += isinstance(example, Comparison) and example.tie
        rejected += isinstance(example, Prompt)
    if reading.format is None or reading.format.holds != "demonstrations":
        rejected = 0
    return Inspection(
        path=source.path,
        files=len(reading.files),
        format=reading.format.name if reading.format else None,
        holds=reading.format.holds if reading.format else None,
        records=reading.records,
        examples=reading.examples - rejected,
        rejected=rejected,
        bad=reading.bad_count,
        problems=reading.problems(),
        distinct_prompts=len(np.unique(np.frombuffer(hashes, np.uint64))) if hashes else 0,
        ties=ties,
        annotators=dict(sorted(annotators.items(), key=lambda item: (-item[1], item[0]))),
        lengths={name: {"characters": _figures(c), "words": _figures(w)} for name, (c, w) in lengths.items()},
        first=[_shown(record) for record in reading.kept],
        not_read=not_read(source.path, directory),
    )


def _shown(record: Record) -> Record:
    """As people see it: names may hold what no terminal can encode, just as values may."""
    return Record(record.place, {printable(name): shown(value, SHOWN) for name, value in record.fields.items()})


def texts_of(example: Example) -> dict[str, str]:
    """The texts of an example, by their names."""
    if isinstance(example, Prompt):
        return {"prompt": example.text}
    if isinstance(example, Rating):
        return {"text": example.text}
    texts = {"prompt": example.prompt.text}
    if isinstance(example, Demonstration):
        return {**texts, "completion": example.completion}
    return {**texts, "chosen": example.chosen, "rejected": example.rejected}


def _figures(lengths: array[int]) -> dict[str, int]:
    values = np.frombuffer(lengths, np.uint64)
    # "higher": a length that some text has, so that "95 %" is enough for 95 in a hundred.
    median, most = np.percentile(values, [50, 95], method="higher")
    return {"median": int(median), "95 %": int(most), "max": int(values.max())}
