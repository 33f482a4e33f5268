"""Readers of files, directories, saved data sets and the hub's cache: the same records, or one line why not."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from data.locations import content_hash, files_of
from data.records import BadRecord, Record, read_records
from rlhf.errors import DataError

RECORDS = [{"prompt": f'grüße {i}\n日本, "x"', "completion": f" c{i}"} for i in range(1200)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
    (tmp_path / "a.csv").write_text('a,b\n1\n1,2\n1,2,3\n"x"y,2\n3,4\n"never closed\nmore\n')
    found = read(tmp_path / "a.csv")
    assert [record.fields for record in found if isinstance(record, Record)] == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]
    bad = [str(record) for record in found if isinstance(record, BadRecord)]
    assert [line.split(": ")[0] for line in bad] == [f"{tmp_path}/a.csv:{n}" for n in (2, 4, 5, 7)]
    assert "1 cells under a header of 2" in bad[0] and "line 8" in bad[3]


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


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    assert "no such file or directory; relative paths start at data.directory" in refused("nix.jsonl", str(tmp_path))
    assert "a data set on the hub needs its commit: org/name@COMMIT" in refused("org/name")
    assert "COMMIT" not in refused("folder/file.jsonl")
    assert "no such file" in refused("a\nb\x00.jsonl", str(tmp_path))
    assert "cannot be read" in refused("x" * 5000)


def test_a_directory_is_its_data_files_by_name(tmp_path: Path) -> None:
    assert "without a data file" in refused(tmp_path)
    (tmp_path / "b.jsonl").write_text('{"n": 2}')
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "c.json").write_text('[{"n": 3}]')
    (tmp_path / "a.csv").write_text("n\n1\n")
    for name in ("README.md", ".hidden.jsonl", "_other.jsonl", "dataset_infos.json"):
        (tmp_path / name).write_text("{")
    assert [record["n"] for record in fields(tmp_path)] == ["1", 2, 3]


def test_a_saved_data_set_is_read_in_its_own_order(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{i}"}], "n": i} for i in range(100)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved", num_shards=12)
    assert fields(tmp_path / "saved") == rows
    shards = sorted(path.name for path in (tmp_path / "saved").glob("*.arrow"))
    assert len(shards) == 12
    (tmp_path / "saved" / shards[3]).unlink()
    assert "missing, though state.json names it" in refused(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    assert "not what save_to_disk writes" in refused(tmp_path / "saved")


def test_of_several_splits_one_must_be_named(tmp_path: Path) -> None:
    part = Dataset.from_list([{"prompt": "p"}])
    DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "saved")
    assert "holds several splits; give saved/train or saved/test" in refused("saved", str(tmp_path))
    assert fields("saved/train", str(tmp_path)) == [{"prompt": "p"}]
    (tmp_path / "saved" / "dataset_dict.json").write_text("[")
    assert "not what save_to_disk writes" in refused("saved", str(tmp_path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one data set, laid out as huggingface_hub does: links to blobs below snapshots/COMMIT."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "datasets--org--name"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    for number, name in enumerate(("data/train-0.jsonl", "data/test-0.jsonl", "other/x.json", "README.md")):
        blob = repository / "blobs" / f"{number:064x}"
        blob.write_text(f'[{{"n": {number}}}]' if name.endswith(".json") else f'{{"n": {number}}}\n')
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def test_the_hub_is_read_at_a_commit(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = f"org/name@{COMMIT}"
    assert [record["n"] for record in fields(whole)] == [1, 0, 2]
    assert fields(f"{whole}:data/train-*") == [{"n": 0}]
    assert fields(f"{whole}:data/train-0.jsonl") == [{"n": 0}]
    assert [record["n"] for record in fields(f"{whole}:data")] == [1, 0]
    assert read(f"{whole}:data/train-*")[0].place == f"{whole}:data/train-0.jsonl:1"
    assert "no data file matches missing" in refused(f"{whole}:missing")
    for revision in ("main", "", "v1.0", COMMIT[:10]):
        assert "is no commit" in refused(f"org/name@{revision}")
    assert "not in the hub's cache" in refused(f"org/name@{COMMIT[::-1]}")
    assert "not in the hub's cache" in refused(f"other/name@{COMMIT}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / f"org/name@{COMMIT}").write_text("{}")
    assert "unknown kind" in refused(whole)  # a local path wins


def test_content_hashes_follow_the_content(hub: Path, tmp_path: Path) -> None:
    file = tmp_path / "files" / "a.jsonl"
    file.parent.mkdir()
    file.write_text('{"n": 1}')

    def hashes() -> tuple[str, str]:
        return content_hash("a.jsonl", str(file.parent)), content_hash("files", str(tmp_path))

    before = hashes()
    shutil.copytree(tmp_path / "files", tmp_path / "elsewhere" / "files")
    assert (
        content_hash("a.jsonl", str(tmp_path / "elsewhere/files")),
        content_hash("files", str(tmp_path / "elsewhere")),
    ) == before
    file.write_text('{"n": 22}')
    assert not set(hashes()) & set(before)
    changed = hashes()
    file.rename(file.with_name("b.jsonl"))
    assert content_hash("files", str(tmp_path)) != changed[1]
    of_hub = {content_hash(f"org/name@{COMMIT}{pattern}", None) for pattern in ("", ":data", ":other")}
    assert len(of_hub) == 3
    with pytest.raises(DataError, match="no such file"):
        content_hash("nix.jsonl", str(tmp_path))
    with pytest.raises(DataError, match="is no commit"):
        content_hash("org/name@main", None)
