"""Pairs of responses that people are to compare, from files of examples.

A file holds comparisons in any format of docs/data.md, whose votes are left out, or records of sampled responses:

    {"prompt": "...", "responses": ["...", "...", "..."], "finished": [true, true, false]}

of which each two make a pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from data.fields import flag_of, need, prompt_of, text_of
from data.formats import Format, as_record, detect
from data.formats_preferences import SameText
from data.locations import files_of
from data.progress import counted
from data.reading import DETECTED_BY, NAMED
from data.records import BadRecord, DataFile, Record, one_line, read_records, shown
from rlhf.errors import DataError
from rlhf.store.artifact import digest
from rlhf.types import Comparison, Prompt

Answer = Literal["first", "second", "tie"]
KIND = "kind"  # the field that names a prompt's kind


@dataclass(frozen=True)
class Pair:
    """Two responses to a prompt."""

    prompt: Prompt
    first: str
    second: str
    first_finished: bool = True  # False: cut off by a length limit
    second_finished: bool = True
    kind: str | None = None  # of the prompt: its stratum
    answer: Answer | None = None  # of a gold pair, what every annotator should say
    origin: str = ""  # where it comes from, for people

    @cached_property
    def id(self) -> str:
        """The same for the same texts, in whichever order: nobody is asked the same question twice."""
        return digest([as_record(self.prompt)["prompt"], sorted([self.first, self.second])])[:20]

    @property
    def preferred(self) -> str | None:
        """The answer as a text, which does not depend on the order; empty for a tie."""
        return None if self.answer is None else {"first": self.first, "second": self.second, "tie": ""}[self.answer]


@dataclass
class Pairs:
    """The different pairs of some sources, and what was left out of them."""

    found: dict[str, Pair] = field(default_factory=dict)
    repeated: int = 0  # votes, or records, on a pair that is there already
    identical: int = 0  # pairs of equal responses, of which nobody can prefer one
    bad: list[BadRecord] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Take up a pair unless it is there, or its responses are equal."""
        if pair.first == pair.second:
            self.identical += 1
        elif known := self.found.get(pair.id):
            self.repeated += 1
            if known.preferred != pair.preferred:
                self.found[pair.id] = replace(known, answer=None)
        else:
            self.found[pair.id] = pair


def read_pairs(
    names: Sequence[str], directory: str | None = None, kind_field: str = KIND, drop_bad: bool = False
) -> Pairs:
    """The pairs of files. Raises DataError where none is good, and for bad records unless they are dropped."""
    pairs = _read(names, directory, kind_field)
    pairs.found = {number: replace(pair, answer=None) for number, pair in pairs.found.items()}
    if not drop_bad:
        _require_good(pairs, "mend or remove it, or give --drop-bad")
    return _require_some(pairs, names)


def read_gold(names: Sequence[str], directory: str | None = None, kind_field: str = KIND) -> Pairs:
    """Pairs with a known answer, which is what comparisons say. Raises DataError where they say none, or two."""
    pairs = _read(names, directory, kind_field)
    _require_good(pairs, "mend or remove it")
    without = [pair.origin for pair in pairs.found.values() if pair.answer is None]
    if without:
        problem = "a gold pair needs one answer; give chosen and rejected, or tie, and no vote against it"
        raise DataError(*(f"{origin}: {problem}" for origin in without[:NAMED]))
    return _require_some(pairs, names)


def _read(names: Sequence[str], directory: str | None, kind_field: str) -> Pairs:
    pairs = Pairs()
    for name in names:
        for file in files_of(name, directory):
            for pair in _pairs_of_file(file, kind_field, pairs):
                pairs.add(pair)
    return pairs


def _require_good(pairs: Pairs, remedy: str) -> None:
    if pairs.bad:
        more = len(pairs.bad) - NAMED
        rest = [f"{more:,} more records cannot be used"] if more > 0 else []
        raise DataError(*(f"{bad}; {remedy}" for bad in pairs.bad[:NAMED]), *rest)


def _require_some(pairs: Pairs, names: Sequence[str]) -> Pairs:
    if not pairs.found:
        raise DataError(f"{', '.join(names)}: no pair of two different responses; give comparisons or responses")
    return pairs


def _pairs_of_file(file: DataFile, kind_field: str, pairs: Pairs) -> Iterator[Pair]:
    records = read_records(file)
    ahead = list(itertools.islice(records, DETECTED_BY))
    fields = [record.fields for record in ahead if isinstance(record, Record)]
    sampled = bool(fields) and "responses" in fields[0]
    form = None if sampled or not fields else detect(fields, "comparisons", file.name)
    if form is not None and form.holds != "comparisons":
        raise DataError(f"{file.name}: format {form.name} holds {form.holds}; give comparisons, or responses")
    for record in counted(itertools.chain(ahead, records), f"reading {file.name}"):
        if isinstance(record, BadRecord):
            pairs.bad.append(record)
            continue
        try:
            made = _responses(record) if form is None else _voted(record, form, pairs)
            kind = _kind(record.fields.get(kind_field), kind_field)
        except SameText:
            pairs.identical += 1
            continue
        except (ValueError, OverflowError) as error:
            pairs.bad.append(BadRecord(record.place, one_line(error)))
            continue
        for pair in made:
            yield replace(pair, kind=kind, origin=record.place)


def _kind(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{name}={shown(value)} is not a name")
    return str(value)


def _responses(record: Record) -> list[Pair]:
    prompt = prompt_of(record.fields)
    responses, finished = need(record.fields, "responses"), record.fields.get("finished")
    if not isinstance(responses, list) or len(responses) < 2:
        raise ValueError(f"responses={shown(responses)} is not a list of two or more")
    texts = [text_of(text, "responses", may_be_empty=True) for text in responses]
    if finished is None:
        ended = [True] * len(texts)
    elif isinstance(finished, list) and len(finished) == len(texts):
        ended = [flag_of(flag, "finished") for flag in finished]
    else:
        raise ValueError(f"finished={shown(finished)} is not one flag for each of {len(texts)} responses")
    return [
        Pair(prompt, texts[one], texts[other], ended[one], ended[other])
        for one, other in itertools.combinations(range(len(texts)), 2)
    ]


def _voted(record: Record, form: Format, pairs: Pairs) -> list[Pair]:
    """The pair of a record with votes; as its answer what they all say."""
    votes = [example for example in form.parse(record.fields) if isinstance(example, Comparison)]
    found: dict[str, tuple[Pair, set[Answer]]] = {}
    for vote in votes:
        pair = Pair(vote.prompt, vote.chosen, vote.rejected, vote.chosen_finished, vote.rejected_finished)
        known, answers = found.setdefault(pair.id, (pair, set()))
        answers.add("tie" if vote.tie else "first" if vote.chosen == known.first else "second")
    pairs.repeated += len(votes) - len(found)
    return [replace(pair, answer=answers.pop() if len(answers) == 1 else None) for pair, answers in found.values()]


def turns_of(prompt: Prompt) -> str | list[Mapping[str, str]]:
    """A prompt as JSON: a text, or turns; `data.fields.prompt_of` reads it."""
    turns: str | list[Mapping[str, str]] = as_record(prompt)["prompt"]
    return turns
