"""Examples on disk, read through the page cache: a sequence that is larger than memory and costs none.

Each example is one row of an Arrow file: its JSON, the hash that decides between train and test, and a hash of the
whole. The file is kept by `data.scratch`, and used again when it is there already, as after a stage was stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data import scratch
from data.formats import Example
from data.ratings import Rating
from data.splits import side_of
from rlhf.types import Comparison, Demonstration, Message, Prompt

T = TypeVar("T")

ROWS = 1024  # in a batch; all are equal but the last, so that a row's batch is known without a search
FORMAT = 2  # raised when rows are written in another way
_SCHEMA = pa.schema([("example", pa.large_binary()), ("side", pa.uint64()), ("identity", pa.binary(16))])


class MappedExamples(Sequence[T]):
    """The examples of a file that `write_examples` made."""

    def __init__(self, path: Path, kind: str) -> None:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()  # no copy: buffers point into the map
        self.sides: NDArray[np.uint64] = table["side"].to_numpy()
        self._identities = table["identity"]
        self._rows = table["example"].chunks
        self._length: int = table.num_rows
        self._unpack: Callable[[Any], Any] = _UNPACK[kind]

    def __len__(self) -> int:
        """How many examples."""
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        """One example, or a list of those in a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"no example {index} among {self._length}")
        batch, row = divmod(index % self._length, ROWS)
        example: T = self._unpack(json.loads(self._rows[batch][row].as_py()))
        return example

    def __iter__(self) -> Iterator[T]:
        """All of them in order."""
        for rows in self._rows:
            for row in rows:
                yield self._unpack(json.loads(row.as_py()))

    def identities(self) -> NDArray[np.uint64]:
        """[examples, 2]: equal rows for equal examples."""
        parts = [np.frombuffer(chunk.buffers()[1], np.uint64) for chunk in self._identities.chunks]
        lengths = [len(chunk) for chunk in self._identities.chunks]
        whole = [part.reshape(-1, 2)[:length] for part, length in zip(parts, lengths, strict=True)]
        return np.concatenate(whole) if whole else np.empty((0, 2), np.uint64)


def write_examples(path: Path, rows: Iterable[tuple[Example, str]], notes: Callable[[], list[str]]) -> dict[str, Any]:
    """Write examples, each with the text that decides its side; the account: their number, and what `notes` says then.

    `notes` is asked when all are written.
    """

    def write(partial: Path) -> dict[str, Any]:
        count = 0
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for batch in _batches(rows):
                writer.write_batch(batch)
                count += batch.num_rows
        return {"rows": count, "notes": notes()}

    return scratch.keep(path, write)


def _batches(rows: Iterable[tuple[Example, str]]) -> Iterator[pa.RecordBatch]:
    examples: list[bytes] = []
    sides: list[int] = []
    identities: list[bytes] = []
    for example, side in rows:
        packed = json.dumps(pack(example), ensure_ascii=False).encode()
        examples.append(packed)
        sides.append(side_of(side))
        identities.append(identity_of(packed))
        if len(examples) == ROWS:
            yield pa.record_batch([examples, sides, identities], schema=_SCHEMA)
            examples, sides, identities = [], [], []
    if examples:
        yield pa.record_batch([examples, sides, identities], schema=_SCHEMA)


def identity_of(packed: bytes) -> bytes:
    """16 bytes that two different examples never share."""
    return hashlib.blake2b(packed, digest_size=16).digest()


def identities_of(examples: Iterable[Example]) -> NDArray[np.uint64]:
    """[examples, 2]: what `MappedExamples.identities` has for examples in memory."""
    found = b"".join(identity_of(json.dumps(pack(example), ensure_ascii=False).encode()) for example in examples)
    return np.frombuffer(found, np.uint64).reshape(-1, 2)


def pack(example: Example) -> list[Any]:
    """An example as a JSON value, without names: it is read a million times, and by us alone."""
    if isinstance(example, Prompt):
        return [_turns(example)]
    if isinstance(example, Demonstration):
        return [_turns(example.prompt), example.completion]
    if isinstance(example, Rating):
        turns = None if example.prompt is None else _turns(example.prompt)
        return [example.text, example.score, turns, example.group, example.annotator]
    votes = [example.tie, example.annotator, example.weight, example.chosen_shown_first, example.seconds]
    votes += [example.chosen_finished, example.rejected_finished]
    later = [(example.target, 1.0), (example.time, None), (example.kind, None)]  # rows without them stay as they were
    while later and later[-1][0] == later[-1][1]:
        later.pop()
    votes += [value for value, _ in later]
    return [_turns(example.prompt), example.chosen, example.rejected, *votes]


def _turns(prompt: Prompt) -> Any:
    if isinstance(prompt.content, str):
        return prompt.content
    return [[message.role, message.content] for message in prompt.content]


def _prompt(turns: Any) -> Prompt:
    return Prompt(turns if isinstance(turns, str) else tuple(Message(role, content) for role, content in turns))


_UNPACK: dict[str, Callable[[list[Any]], Any]] = {
    "prompts": lambda row: _prompt(row[0]),
    "demonstrations": lambda row: Demonstration(_prompt(row[0]), row[1]),
    "comparisons": lambda row: Comparison(_prompt(row[0]), *row[1:]),
    "ratings": lambda row: Rating(row[0], row[1], None if row[2] is None else _prompt(row[2]), *row[3:]),
}


class Selection(Sequence[T], Generic[T]):
    """Examples of several sequences, by their indices in all of them together: a split, a mixture, an order."""

    def __init__(self, parts: Sequence[Sequence[T]], indices: NDArray[np.int64]) -> None:
        self.parts = parts
        self.indices = indices
        self._ends = np.cumsum([len(part) for part in parts])

    @property
    def origins(self) -> NDArray[np.int64]:
        """[examples]: which of the parts each is from."""
        return np.searchsorted(self._ends, self.indices, side="right")

    def __len__(self) -> int:
        """How many examples."""
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        """One example, or the selection of those in a slice."""
        if isinstance(index, slice):
            return Selection(self.parts, self.indices[index])
        position = int(self.indices[index])
        number = int(np.searchsorted(self._ends, position, side="right"))
        part = self.parts[number]
        return part[position - int(self._ends[number]) + len(part)]

    def __iter__(self) -> Iterator[T]:
        """All of them in order."""
        return (self[index] for index in range(len(self)))
