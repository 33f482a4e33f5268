"""Readers of files: the same records from each kind, or one line why not."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.locations import files_of
from data.records import BadRecord, Record, read_records
from rlhf.errors import DataError

RECORDS = [{"prompt": f'grüße {i}\n日本, "x"', "completion": f" c{i}"} for i in range(1200)]


def read(source: Path | str, directory: str | None = None) -> list[Record | BadRecord]:
    return [record for file in files_of(str(source), directory) for record in read_records(file)]


def fields(source: Path | str, directory: str | None = None) -> list[dict[str, Any]]:
    found = read(source, directory)
    assert all(isinstance(record, Record) for record in found)
    return [record.fields for record in found if isinstance(record, Record)]


def refused(source: Path | str, directory: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read(source, directory)
    (problem,) = caught.value.problems
    assert "\n" not in problem and problem.isprintable()
    return problem


def as_csv(records: list[dict[str, Any]]) -> str:
    quoted = ['"' + value.replace('"', '""') + '"' for record in records for value in record.values()]
    rows = [",".join(quoted[i : i + 2]) for i in range(0, len(quoted), 2)]
    return "\r\n".join([",".join(records[0]), *rows])


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=700)


def write_arrow(path: Path) -> None:
    table = pa.Table.from_pylist(RECORDS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)


JSONL = "\n".join(map(json.dumps, RECORDS))
WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_text(JSONL),
    "b.jsonl.gz": lambda path: path.write_bytes(gzip.compress(JSONL.encode())),
    "crlf.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + JSONL.replace("\n", "\r\n\r\n").encode()),
    "c.json": lambda path: path.write_text(json.dumps(RECORDS)),
    "indented.json": lambda path: path.write_text(json.dumps(RECORDS, indent=2, ensure_ascii=False)),
    "d.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(RECORDS, indent=1).encode())),
    "lines.json": lambda path: path.write_text(JSONL),
    "e.csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + as_csv(RECORDS).encode()),
    "f.CSV.gz": lambda path: path.write_bytes(gzip.compress(as_csv(RECORDS).encode())),
    "g.parquet": write_parquet,
    "h.arrow": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_records(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert fields(tmp_path / name) == RECORDS
    assert fields(name, str(tmp_path)) == RECORDS


def test_places_are_lines_where_there_are_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n \n{"a": 2}\n')
    assert [record.place for record in read(tmp_path / "a.jsonl")] == [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:4"]
    (tmp_path / "a.csv").write_text('\na,b\n"1\n2",x\n\n3,y\n')
    assert [record.place for record in read(tmp_path / "a.csv")] == [f"{tmp_path}/a.csv:3", f"{tmp_path}/a.csv:6"]
    write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[-1].place == f"{tmp_path}/a.parquet, record 1200"


def test_nulls_in_columns_are_fields_that_are_not_there(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "tie": None}, {"prompt": "q", "tie": True}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert fields(tmp_path / "a.parquet") == [{"prompt": "p"}, {"prompt": "q", "tie": True}]


def test_cells_of_known_columns_are_no_texts(tmp_path: Path) -> None:
    header = "prompt,completion,tie,weight,annotator,annotator1,ratings\n"
    (tmp_path / "a.csv").write_text(header + '7,true,True,0.5,,2,"[1, 2]"\n7,,,x,7,,\n')
    assert fields(tmp_path / "a.csv") == [
        {"prompt": "7", "completion": "true", "tie": True, "weight": 0.5, "annotator1": 2, "ratings": [1, 2]},
        {"prompt": "7", "completion": "", "weight": "x", "annotator": "7"},
    ]


def test_rows_that_do_not_fit_the_header_are_bad_records(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n1\n1,2\n1,2,3\n"x"y,2\n3,4\n"swallows\na row"\n"swallows\n"a",b\n')
    found = read(tmp_path / "a.csv")
    assert [record.fields for record in found if isinstance(record, Record)] == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]
    bad = [str(record) for record in found if isinstance(record, BadRecord)]
    assert [line.split(": ")[0] for line in bad] == [f"{tmp_path}/a.csv:{n}" for n in (2, 4, 5, 7, 9)]
    assert "1 cells under a header of 2" in bad[0] and "(lines 7 to 8)" in bad[3] and "line 10" in bad[4]


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize(("row", "line"), [('"open,2', 501), ('"1\n\n2",a"b"c"open', 0), ('"1\n""2\n",", open', 503)])
def test_a_quoted_cell_that_does_not_end_is_no_bad_record(row: str, line: int, end: str, tmp_path: Path) -> None:
    """Dropped as one, it would take the rest of the file along."""
    text = "a,b\n" + "1,2\n" * 499 + row + "\n" + "3,4\n" * 499 + "5,6" + end
    (tmp_path / "a.csv").write_text(text)
    if line:
        problem = refused(tmp_path / "a.csv")
        assert problem.startswith(f"{tmp_path}/a.csv:{line}: a quoted cell begins here and does not end; close its")
    else:  # marks within a cell that is not quoted mean nothing
        assert len(fields(tmp_path / "a.csv")) == 1000


def test_a_quoted_cell_beyond_all_texts_is_no_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.records.CSV_CELL", 1000)
    (tmp_path / "a.csv").write_text("a,b\n1,2\n" + '"open,2\n' + "1,2\n" * 1000)
    assert "a.csv:3: a cell of more than 1,000 characters" in refused(tmp_path / "a.csv")


def test_a_csv_cell_may_be_large_and_the_limit_stays_as_it_was(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("prompt\n" + "x" * 1_000_000 + "\n")
    assert len(fields(tmp_path / "a.csv")[0]["prompt"]) == 1_000_000
    assert csv.field_size_limit() == before


def test_one_gigantic_line_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "x" * 20_000_000}))
    assert len(fields(tmp_path / "a.jsonl")[0]["prompt"]) == 20_000_000


PACKED = gzip.compress(JSONL.encode())


def saved(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


PARQUET = saved(pa.Table.from_pylist(RECORDS[:50]))
TWICE = saved(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"]))
WHOLE_FILES = [
    ("empty.jsonl", b"", "no records"),
    ("blank.jsonl", b"\n \n", "no records"),
    ("empty.jsonl.gz", gzip.compress(b""), "no records"),
    ("empty.json", b" ", "no records"),
    ("none.json", b"[]", "no records"),
    ("header.csv", b"a,b\n", "no records"),
    ("empty.csv", b"", "no records"),
    ("latin1.jsonl", b'{"a": "x"}\n{"a": "gr\xfc\xdfe"}\n', "cannot be read as text (line 2"),
    ("latin1.jsonl.gz", gzip.compress(b'{"prompt": "gr\xfc\xdfe"}\n'), "cannot be read as text"),
    ("utf16.csv", "a,b\n1,2\n".encode("utf-16"), "cannot be read as text"),
    ("binary.jsonl", bytes(range(256)) * 4, "cannot be read as text"),
    ("plain.jsonl.gz", b'{"prompt": "p"}\n', "cannot be read as text"),
    ("cut.jsonl.gz", PACKED[:-12], "cannot be read as text"),
    ("half.jsonl.gz", PACKED[: len(PACKED) // 2], "cannot be read as text"),
    ("flipped.jsonl.gz", PACKED[:10] + b"\xff" + PACKED[11:], "cannot be read as text"),
    ("checksum.jsonl.gz", PACKED[:-8] + b"\0" * 8, "cannot be read as text"),
    ("cut.json", b'[{"a": 1}, {"a": ', "not JSON"),
    ("object.json", b'{\n  "data": []\n}', "not an array of objects"),
    ("scalar.json", b"3", "not an array of objects but 3"),
    ("deep.json", b"[" * 100_000, "nested too deeply"),
    ("twice.csv", b"a,a\n1,2\n", "the header names 'a' twice"),
    ("header.csv", b'"a\n', "no header"),
    ("text.parquet", b"hello", "cannot be read as Parquet"),
    ("empty.parquet", b"", "cannot be read as Parquet"),
    ("cut.parquet", PARQUET[:-20], "cannot be read as Parquet"),
    ("none.parquet", saved(pa.table({"a": pa.array([], pa.string())})), "no records"),
    ("twice.parquet", TWICE, "two columns are named 'a'"),
    ("text.arrow", b"hello, this is text", "without its end"),
    ("data.txt", b"x", "unknown kind"),
    ("data.parquet.gz", b"x", "unknown kind"),
    ("data", b"x", "unknown kind"),
]


@pytest.mark.parametrize(("name", "content", "reason"), WHOLE_FILES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_file_that_cannot_be_used_is_one_line(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    problem = refused(tmp_path / name)
    assert problem.startswith(f"{tmp_path / name}: ") and reason in problem


def test_a_cut_arrow_stream_does_not_lose_its_tail(tmp_path: Path) -> None:
    """Cut between two messages it would read as a whole one."""
    write_arrow(tmp_path / "a.arrow")
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[:-8])
    assert "without its end" in refused(tmp_path / "a.arrow")


def test_the_last_line_of_a_cut_file_is_a_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"}\n{"prompt": "q')
    good, bad = read(tmp_path / "a.jsonl")
    assert isinstance(good, Record) and isinstance(bad, BadRecord) and bad.place.endswith(":2")
