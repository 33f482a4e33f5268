"""From a source's files to examples of one kind, with an account of every record.

Each record is read into examples, or is bad and counted by its place. By default bad records end in a DataError that
names the first of them; `bad_records: drop` leaves them out and says so.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.formats import STANDARD, Example, Format, detect, draw, given, listed
from data.progress import counted
from data.ratings import Rating
from data.records import BadRecord, DataFile, Record, one_line, read_records
from rlhf.config import SourceConfig
from rlhf.errors import DataError

DETECTED_BY = 100  # records whose fields tell the format
NAMED = 10  # bad records that an error names


@dataclass
class Reading:
    """One pass over files: iterate over it for examples; the account is complete when the iteration is.

    kind None gives what the records hold, whatever that is, and leaves bad records to the caller.
    """

    source: SourceConfig
    files: Sequence[DataFile]
    kind: str | None
    keep: int = 0  # how many of the first records to keep
    kept: list[Record] = field(default_factory=list)
    records: int = 0  # good and bad
    examples: int = 0
    bad_count: int = 0
    bad: list[BadRecord] = field(default_factory=list)  # the first of them
    reasons: set[str] = field(default_factory=set)  # the first ones why records are bad
    fields: Sequence[str] = ()  # of the first record that did not parse
    unused: Counter[str] = field(default_factory=Counter)  # examples that give none of this kind, by the reason
    format: Format | None = None
    place: str = ""  # of the record that the last example came from
    last: Mapping[str, Any] = field(default_factory=dict)  # that record
    tell_bad: Callable[[BadRecord], None] | None = None  # told of every bad record

    def __iter__(self) -> Iterator[Example]:
        """Examples, the first `source.count` of them. Raises DataError for what the recipe does not allow."""
        limit = self.source.count
        if limit is None:
            yield from self._parsed()
        else:
            yield from itertools.islice(self._parsed(), limit)
        if self.kind is None:
            return
        if self.bad and (self.source.bad_records == "fail" or not self.examples):
            raise DataError(*self.problems())
        if not self.examples:
            raise DataError(f"{self.source.path}: gives no {self.kind} ({self._told_unused()}); give another file")

    def problems(self) -> list[str]:
        """One line for each of the first bad records, and one for how many more there are.

        One line alone where no record can be used and all for the same reason: the file is another than was meant.
        """
        if self.bad_count == self.records > 1 and len(self.reasons) == 1 and self.fields and self.format:
            (reason,) = self.reasons
            wanted = ", ".join(self.format.fields) or STANDARD[self.kind]
            remedy = f"rename to {wanted}" if reason.startswith("no field ") else "mend them"
            none = f"none of its {self.records:,} records can be used as {self.format.name} ({reason})"
            fields = f"their fields are {listed(self.fields)}"
            return [f"{self.source.path}: {none}; {fields}; {remedy}, or see docs/data.md for other formats"]
        may_drop = self.kind is not None and self.source.bad_records == "fail"  # else nothing would be left
        remedy = "mend or remove it, or set bad_records: drop" if may_drop else "mend or remove it"
        lines = [f"{bad}; {remedy}" for bad in self.bad]
        if self.bad_count > len(self.bad):
            more = self.bad_count - len(self.bad)
            where = self.files[0].name if len(self.files) == 1 else self.source.path
            lines.append(f"{where}: {more:,} more records cannot be used")
        return lines

    def notes(self) -> list[str]:
        """What people should know of this pass, a line each."""
        if self.format is None:
            return []
        how = "detected" if self.source.format == "auto" else "given"
        drawn = "" if self.format.holds in (self.kind, "ratings") else f" from {self.format.holds}"
        what = f"{self.examples:,} {self.format.holds if self.format.holds == 'ratings' else self.kind}{drawn}"
        lines = [f"{self.source.path}: format {self.format.name} ({how}), {self.records:,} records, {what}"]
        if self.kind == "demonstrations" and self.format.holds == "comparisons":
            lines[0] += " (prompt and chosen)"
        if self.unused:
            lines.append(f"{self.source.path}: {self._told_unused()}")
        if self.bad_count:
            first = "; ".join(map(str, self.bad[:3])) + ("; ..." if self.bad_count > 3 else "")
            lines.append(f"{self.source.path}: dropped {self.bad_count:,} bad records: {first}")
        return lines

    def _told_unused(self) -> str:
        told = [f"{count:,} {reason} are no {self.kind}" for reason, count in self.unused.items()]
        return ", ".join(told) or f"{self.records:,} records"

    def _parsed(self) -> Iterator[Example]:
        records = itertools.chain.from_iterable(map(read_records, self.files))
        if self.source.format == "auto":
            ahead = self._ahead(records)
            fields = [record.fields for record in ahead if isinstance(record, Record)]
            self.format = detect(fields, self.kind, self.source.path) if fields else None
            records = itertools.chain(ahead, records)
        else:
            self.format = given(self.source.format, self.kind, self.source.path)
        self._require_no_idle_prompt()
        for record in counted(records, f"reading {self.source.path}"):
            self.records += 1
            for example in self._parse(record):
                self.examples += 1
                yield example

    def _parse(self, record: Record | BadRecord) -> list[Example]:
        if isinstance(record, BadRecord):
            self._count_bad(record)
            return []
        self.place, self.last = record.place, record.fields
        if len(self.kept) < self.keep:
            self.kept.append(record)
        assert self.format is not None  # a good record was among those that told it
        try:
            found, unused = draw(self.format.parse(record.fields), self.kind)
        except (ValueError, OverflowError) as error:
            self.fields = self.fields or list(record.fields)
            self._count_bad(BadRecord(record.place, one_line(error), getattr(error, "kind", "malformed")))
            return []
        self.unused.update(unused)
        if self.kind == "comparisons" and self.format.holds == "ratings":
            self._require_one_prompt(found)
        return found

    def _ahead(self, records: Iterator[Record | BadRecord]) -> list[Record | BadRecord]:
        """Records until enough of them are good to tell the format."""
        ahead: list[Record | BadRecord] = []
        good = 0
        for record in records:
            ahead.append(record)
            good += isinstance(record, Record)
            if good == DETECTED_BY:
                break
        return ahead

    def _count_bad(self, bad: BadRecord) -> None:
        self.bad_count += 1
        if self.tell_bad:
            self.tell_bad(bad)
        if len(self.reasons) < NAMED:
            self.reasons.add(bad.problem)
        if len(self.bad) < NAMED:
            self.bad.append(bad)

    def _require_one_prompt(self, found: list[Example]) -> None:
        """Rated texts answer a prompt of their own or the recipe's."""
        for rating in found:
            own = isinstance(rating, Rating) and rating.prompt is not None
            if not own and self.source.prompt is None:
                raise DataError(
                    f"{self.source.path}: rated texts need the prompt that they answer; set prompt beside path"
                )
            if own and self.source.prompt is not None:
                raise DataError(f"{self.source.path}: its rated texts have prompts of their own; remove prompt")

    def _require_no_idle_prompt(self) -> None:
        """A constant prompt is for rated texts alone: elsewhere it would be left out without a word."""
        if self.format and self.format.holds != "ratings" and self.source.prompt is not None:
            raise DataError(
                f"{self.source.path}: prompt={self.source.prompt[:40]!r} is for rated texts, and format "
                f"{self.format.name} holds {self.format.holds}; remove prompt"
            )
