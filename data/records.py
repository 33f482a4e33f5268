"""Records of .jsonl, .json and .csv files (each also .gz), one after another, with the place each stands at.

What is wrong with one record comes out as a `BadRecord`, so that the caller decides; what is wrong with a whole file
(missing, empty, cut, no text, of an unknown kind) is a `DataError`. Nothing is left out without a word: a compressed
file that ends early is an error, and so is the last line of a file that was cut in the middle of it. Memory holds one
record, except for .json, whose array must be read as a whole. Parquet and Arrow: `data.columnar`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlhf.errors import DataError

# A quotation mark that nobody closes makes the rest of a CSV file one cell; no text of an example is longer.
CSV_CELL = 2**28
KINDS = ".jsonl, .json or .csv (each also .gz), .parquet, a directory, or org/name@COMMIT of the hub"


@dataclass(frozen=True)
class DataFile:
    """A file of records, and the name that people know it by."""

    path: Path
    name: str


@dataclass(frozen=True)
class Record:
    """One record and its place: `file:line`, or `file, record N` where lines mean nothing."""

    place: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class BadRecord:
    """What stands where a record should be."""

    place: str
    problem: str  # one line
    kind: str = "malformed"  # or empty, identical: what the gate calls it, see data.quality

    def __str__(self) -> str:
        """As errors show it."""
        return f"{self.place}: {self.problem}"


def read_records(file: DataFile) -> Iterator[Record | BadRecord]:
    """All records of a file in its order. Raises DataError where the file as a whole cannot be used."""
    from data.columnar import read_arrow, read_parquet  # it knows this module's nouns

    readers: dict[str, Callable[[DataFile], Iterator[Record | BadRecord]]] = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".parquet": read_parquet,
        ".arrow": read_arrow,
    }
    found = 0
    for record in readers[suffix_of(file)](file):
        found += 1
        yield record
    if not found:
        raise DataError(f"{file.name}: no records; give a file that holds some")


def suffix_of(file: DataFile) -> str:
    """The suffix that says how a file is read, without .gz; DataError for one that nothing reads."""
    stem = file.path.name.lower().removesuffix(".gz")
    packed = stem != file.path.name.lower()
    for suffix in (".jsonl", ".json", ".csv") if packed else (".jsonl", ".json", ".csv", ".parquet", ".arrow"):
        if stem.endswith(suffix):
            return suffix
    raise DataError(f"{file.name}: a file of an unknown kind; give {KINDS}")


def shown(value: object, limit: int = 60) -> str:
    """A value as people see it in an error: one line, printable and short."""
    text = repr(value if not isinstance(value, str) else value[: limit + 1])
    return text if len(text) <= limit else f"{text[:limit]}..."


def one_line(error: BaseException) -> str:
    """What an exception says, in one line of bearable length."""
    text = printable((" ".join(str(error).split()) or type(error).__name__)[:400])
    return text if len(text) <= 200 else f"{text[:200]}..."


def printable(text: str) -> str:
    """A text with all that a terminal cannot show, or would obey, as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def parse_json(text: str) -> Any:
    """A JSON value. Raises ValueError, also for a name that stands twice in an object, which json would pass over."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {shown(twice)} stands twice in one object")
    return fields


def _read_jsonl(file: DataFile) -> Iterator[Record | BadRecord]:
    for number, line in _lines(file):
        if line.strip():
            yield _record_of_text(f"{file.name}:{number}", line)


def _record_of_text(place: str, text: str) -> Record | BadRecord:
    try:
        value = parse_json(text)
    except ValueError as error:
        return BadRecord(place, f"not JSON ({one_line(error)})")
    return _record(place, value)


def _record(place: str, value: Any) -> Record | BadRecord:
    if not isinstance(value, dict):
        return BadRecord(place, f"a record is an object, not {shown(value)}")
    # As in Parquet, a field without a value is none: writers that know their columns give every record all of them.
    return Record(place, {name: each for name, each in value.items() if each is not None})


def _read_json(file: DataFile) -> Iterator[Record | BadRecord]:
    """An array of objects, in memory as a whole; a file with one object a line is read as .jsonl is."""
    first = next((line for _, line in _lines(file) if line.strip()), "")
    if first.lstrip().startswith("{"):
        if isinstance(_record_of_text("", first), BadRecord):
            raise DataError(f"{file.name}: not an array of objects; write [{{...}}, {{...}}], or one object a line")
        yield from _read_jsonl(file)
        return
    text = "".join(line for _, line in _lines(file))
    if not text.strip():
        return
    try:
        values = parse_json(text)
    except ValueError as error:
        raise DataError(f"{file.name}: not JSON ({one_line(error)}); give a whole array of objects") from None
    if not isinstance(values, list):
        raise DataError(f"{file.name}: not an array of objects but {shown(values)}; write [{{...}}, {{...}}]")
    for number, value in enumerate(values, start=1):
        yield _record(f"{file.name}, record {number}", value)


def _read_csv(file: DataFile) -> Iterator[Record | BadRecord]:
    """Rows under a header; every cell is a text. Places are the lines where rows begin."""
    limit = csv.field_size_limit(CSV_CELL)
    ended = False

    def lines() -> Iterator[str]:
        nonlocal ended
        yield from (line for _, line in _lines(file))
        ended = True

    try:
        rows = csv.reader(lines(), strict=True)
        header: list[str] | None = None
        begin = 1
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None:
                    raise DataError(f"{file.name}: no header ({one_line(error)}); name the columns first") from None
                if ended or "limit" in str(error):  # what was swallowed may be rows by the thousand
                    raise DataError(_unclosed(file, begin, ended)) from None
                yield BadRecord(f"{file.name}:{begin}", f"no row of cells ({one_line(error)}, line {rows.line_num})")
                begin = rows.line_num + 1
                continue
            if row and header is None:
                header = _header(file, row)
            elif row and header is not None:
                yield _row(file, header, row, begin, rows.line_num)
            begin = rows.line_num + 1
    finally:
        csv.field_size_limit(limit)


def _header(file: DataFile, row: list[str]) -> list[str]:
    twice = [name for name in row if row.count(name) > 1]
    if twice:
        raise DataError(f"{file.name}: the header names {shown(twice[0])} twice; give each column a name of its own")
    return row


def _unclosed(file: DataFile, begin: int, ended: bool) -> str:
    """The error for a quotation mark that nobody closes; begin: the line of its row."""
    remedy = "close its quotation mark, and write one inside a cell twice"
    if not ended:
        return f"{file.name}:{begin}: a cell of more than {CSV_CELL:,} characters begins in this row; {remedy}"
    lines = [line for number, line in _lines(file) if number >= begin]
    cell = next(csv.reader(lines))[-1]  # not strict, so the cell is what stands between its mark and the end
    line = begin + len(lines) - cell.count("\n") - (not lines[-1].endswith("\n"))
    return f"{file.name}:{line}: a quoted cell begins here and does not end; {remedy}"


def _row(file: DataFile, header: list[str], row: list[str], begin: int, end: int) -> Record | BadRecord:
    place = f"{file.name}:{begin}"
    if len(row) != len(header):
        lines = f" (lines {begin} to {end})" if end > begin else ""
        return BadRecord(place, f"{len(row)} cells under a header of {len(header)}{lines}")
    try:
        return Record(place, {name: each for name, cell in zip(header, row, strict=True) for each in _cell(name, cell)})
    except ValueError as error:
        return BadRecord(place, str(error))


# Columns whose cells are no texts. In any other but those below a cell is a text, whatever it looks like.
_TYPED = {"tie", "weight", "seconds", "mean", "rating", "ratings", "votes", "annotators", "messages", "instances"}
_TYPED |= {
    "label",
    "time",
    "target",
    "chosen_shown_first",
    "chosen_finished",
    "rejected_finished",
    "overall-rating",
    "history",
}
# Columns whose cells are texts, or conversations as JSON.
_TURNS = {"prompt", "chosen", "rejected", "completion"}
_PYTHONS = re.compile(r"\s*\[\s*\{\s*'(?:role|content)': ['\"].*?['\"], '(?:role|content)': ['\"]", re.DOTALL)


def _turns(cell: str) -> Any:
    """The turns that a cell holds as JSON, or its text."""
    try:
        value = parse_json(cell)
    except ValueError:
        return cell
    told = isinstance(value, list) and value and all(isinstance(turn, dict) and "role" in turn for turn in value)
    return value if told else cell


def _cell(name: str, cell: str) -> list[Any]:
    """A cell's value in a list, which is empty where an empty cell means that nothing is known."""
    if name in _TURNS and cell.lstrip().startswith("["):
        if _PYTHONS.match(cell):
            raise ValueError(f"{name} is a list as Python prints it; write turns as JSON, or give .jsonl or Parquet")
        return [_turns(cell)]
    if name not in _TYPED and not (name.startswith("annotator") and name[9:].isdigit()):
        return [cell] if cell or name != "annotator" else []
    if not cell.strip():
        return []
    try:
        return [parse_json(cell.lower() if cell.lower() in ("true", "false") else cell)]
    except ValueError:
        return [cell]  # the format says what is wrong with it


def _lines(file: DataFile) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, as UTF-8."""
    try:
        with _open(file) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(_unreadable(file, f"line {number}: {one_line(error)}")) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(_unreadable(file, one_line(error))) from error


def _open(file: DataFile) -> IO[bytes]:
    if file.path.name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.open(file.path, "rb"), 2**20)
    return file.path.open("rb")


def _unreadable(file: DataFile, reason: str) -> str:
    return f"{file.name}: cannot be read as text ({reason}); give a whole file, in UTF-8"
