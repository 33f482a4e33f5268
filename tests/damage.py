"""Sound files and records of every kind, and ways to damage them: for the fuzzer."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
OTHER = [TURNS[0], {"role": "assistant", "content": "no"}]
RECORDS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "p"},
    "prompt-completion": {"prompt": [TURNS[0]], "completion": "c"},
    "messages": {"messages": TURNS},
    "instruction": {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "a"]]},
    "self-instruct": {"instruction": "i", "instances": [{"input": "x", "output": "o"}, {"input": "", "output": "2"}]},
    "preference": {"prompt": "p", "chosen": "a", "rejected": TURNS[1:], "votes": [{"prefers": "tie", "weight": 2}]},
    "implicit-preference": {"chosen": TURNS, "rejected": OTHER, "annotators": ["x"]},
    "hh": {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no", "weight": 0.5},
    "pandalm": {"instruction": "i", "input": "", "response1": "a", "response2": "b", "annotator1": 0, "annotator2": 2},
    "rating": {"text": "t", "mean": 1.5, "ratings": [1, 2], "annotator": "x"},
    "squality": {"passage": "5", "question": "0", "response": "r", "worker_id": "3", "overall-rating": 10},
}
ROWS = [
    {"prompt": f"prompt {i}", "chosen": f"a{i}", "rejected": f'b{i}\n,"q"', "weight": i / 7 + 0.01} for i in range(20)
]


def parquet() -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=8)
    return sink.getvalue()


def arrow() -> bytes:
    table, sink = pa.Table.from_pylist(ROWS), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=8)
    return sink.getvalue()


def as_csv() -> bytes:
    cells = [
        [str(value).replace('"', '""') for value in row.values()] for row in [{name: name for name in ROWS[0]}, *ROWS]
    ]
    return "\r\n".join(",".join(f'"{cell}"' for cell in row) for row in cells).encode()


JSONL = "\n".join(map(json.dumps, ROWS)).encode()
FILES: dict[str, bytes] = {
    "a.jsonl": JSONL,
    "a.jsonl.gz": gzip.compress(JSONL, mtime=0),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "a.csv": as_csv(),
    "a.parquet": parquet(),
    "a.arrow": arrow(),
}

Damage = Callable[[bytes], bytes]
position = st.floats(0, 1, exclude_max=True)


def at(content: bytes, place: float) -> int:
    return int(place * len(content))


def flipped(place: float, value: int) -> Damage:
    return lambda content: content[: at(content, place)] + bytes([value]) + content[at(content, place) + 1 :]


def cut(begin: float, end: float) -> Damage:
    return lambda content: content[: at(content, min(begin, end))] + content[at(content, max(begin, end)) :]


def inserted(place: float, what: bytes) -> Damage:
    return lambda content: content[: at(content, place)] + what + content[at(content, place) :]


def without_line(place: float) -> Damage:
    def damage(content: bytes) -> bytes:
        lines = content.split(b"\n")
        del lines[int(place * len(lines))]
        return b"\n".join(lines)

    return damage


NASTY = [
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"[" * 3000,
    b"\x00",
    b"\xff",
    b"\n",
    b"\r",
    b'"',
    b",",
    b"{}\n",
    b"]",
]
damage = st.one_of(
    st.builds(flipped, position, st.integers(0, 255)),
    st.builds(cut, position, position),
    st.builds(cut, position, st.just(1.0)),
    st.builds(inserted, position, st.one_of(st.sampled_from(NASTY), st.binary(max_size=8))),
    st.builds(without_line, position),
)


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(st.characters(), max_size=6),  # lone surrogates among them
    st.sampled_from(["", " ", "user", "assistant", "chosen", "\n\nHuman: ", "\n\nAssistant:", "\ud800"]),
)
anything = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "content", "prefers", "output", "input", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)
