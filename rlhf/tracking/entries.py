"""A stage's own files, read in order: what the other trackers send, while it runs and afterwards.

`metrics.jsonl` and `samples/` are written before anything else and hold everything, so they are the buffer: whoever
sends them can be late, can be killed and can begin again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet


@dataclass(frozen=True)
class Line:
    """Figures of one step; several lines may be of the same step."""

    number: int  # in its file
    step: int
    time: float  # seconds since the epoch
    figures: Mapping[str, float]  # nan where the file has null


@dataclass(frozen=True)
class Table:
    """Samples of one step."""

    step: int
    name: str
    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """The samples themselves."""
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(self.path).to_pylist()
        return rows


Entry = Line | Table


@dataclass
class Entries:
    """What stands in a stage's files and was not yet taken."""

    directory: Path
    offset: int = 0  # bytes of metrics.jsonl that were taken
    lines: int = 0  # the same, in lines
    step: int = -1  # of the last line that was taken
    tables: set[Path] = field(default_factory=set)  # that were taken

    def take(self, everything: bool = False) -> Sequence[Entry]:
        """What is new, by step, lines before tables. A table waits for a line of its step, unless this is the end."""
        lines = self._lines()
        self.step = max([self.step, *(line.step for line in lines)])
        tables = self._tables(None if everything else self.step)
        self.tables.update(table.path for table in tables)
        entries: list[Entry] = [*lines, *tables]
        return sorted(entries, key=lambda entry: (entry.step, isinstance(entry, Table)))

    def _lines(self) -> list[Line]:
        path = self.directory / "metrics.jsonl"
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(self.offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may still be on its way
        found = [_line(number, json.loads(text)) for number, text in enumerate(whole.splitlines(), self.lines)]
        self.offset += len(whole)
        self.lines += len(found)
        return found

    def _tables(self, until: int | None) -> list[Table]:
        found = []
        for path in (self.directory / "samples").glob("[!.]*-*.parquet"):
            name, _, number = path.stem.rpartition("-")
            if path not in self.tables and number.isdigit() and (until is None or int(number) <= until):
                found.append(Table(int(number), name, path))
        return sorted(found, key=lambda table: (table.step, table.name))


def _line(number: int, content: dict[str, Any]) -> Line:
    step, time = int(content.pop("step")), float(content.pop("time"))
    return Line(number, step, time, {name: math.nan if value is None else value for name, value in content.items()})
