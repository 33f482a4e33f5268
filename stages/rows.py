"""Token rows for the trainers, on disk: written once, one after another, and mapped, so no data set is too large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset
from numpy.typing import NDArray

from data import scratch
from data.progress import counted
from rlhf.distributed import main_first
from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration
from stages.context import StageContext
from stages.examples import scratch_of

T = TypeVar("T", Demonstration, Comparison)

BATCH = 256  # rows written together
IDS = pa.list_(pa.int64())
EXAMPLE = "example"  # the column with each row's index among the examples


@dataclass(frozen=True)
class Keeping:
    """Where rows are kept, and what happens to an example of too many tokens."""

    max_length: int
    field: str  # the recipe's, for the error: sft.max_length
    too_long: Literal["fail", "drop"] = "fail"
    path: Path | None = None  # None: memory
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Rows:
    """Encoded examples."""

    dataset: Dataset
    kept: NDArray[np.int64]  # indices of the examples that were not too long


def keeping(context: StageContext, max_length: int, part: str) -> Keeping:
    """A stage's part (training, held-out), kept in its scratch directory and found there when the stage goes on."""
    path = scratch_of(context) / f"{part}-{max_length}-{context.lineage.fingerprint[:24]}.arrow"
    return Keeping(max_length, f"{context.stage}.max_length", context.recipe.data.too_long, path, context.say)


def write_rows(
    examples: Sequence[T], encode: Callable[[T], dict[str, Any]], schema: dict[str, pa.DataType], keeping: Keeping
) -> Rows:
    """Encode every example into a row. Raises DataError for one that is too long, unless those are dropped."""
    full = pa.schema({**schema, EXAMPLE: pa.int64()})
    batches = _batches(examples, encode, full, keeping)
    path = keeping.path
    if path is None:
        sink = pa.BufferOutputStream()
        _write(sink, full, batches)
        return _rows(Dataset.from_buffer(sink.getvalue()), len(examples), keeping)
    with main_first():
        if scratch.sound(path, keeping.say) is None:
            scratch.keep(path, lambda partial: _write_file(partial, full, batches))
    return _rows(Dataset.from_file(str(path)), len(examples), keeping)


def lengths(dataset: Dataset, column: str) -> NDArray[np.int64]:
    """How many tokens each row has, without reading them."""
    found: NDArray[np.int64] = pa.compute.list_value_length(dataset.data.column(column)).to_numpy()
    return found


def _write_file(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> dict[str, Any]:
    with pa.OSFile(str(path), "wb") as file:
        return {"rows": _write(file, schema, batches)}


def _write(sink: Any, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    rows = 0
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _rows(dataset: Dataset, examples: int, keeping: Keeping) -> Rows:
    kept = dataset.data.column(EXAMPLE).to_numpy()
    if not len(kept):
        raise DataError(f"every example has more than {keeping.max_length} tokens; raise {keeping.field}")
    if dropped := examples - len(kept):
        keeping.say(f"left out {dropped:,} of {examples:,} examples: more than {keeping.max_length:,} tokens")
    return Rows(dataset.remove_columns(EXAMPLE), kept)


def _batches(
    examples: Sequence[T], encode: Callable[[T], dict[str, Any]], schema: pa.Schema, keeping: Keeping
) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    for number, example in enumerate(counted(examples, "tokenising", len(examples))):
        row = encode(example)
        longest = max(len(ids) for ids in row.values() if isinstance(ids, list))
        if longest <= keeping.max_length:
            rows.append({**row, EXAMPLE: number})
        elif keeping.too_long == "fail":
            kind = type(example).__name__.lower()
            raise DataError(
                f"{kind} {number} ({example.prompt.text[:40]!r}...) has {longest} tokens, more than "
                f"{keeping.max_length}; shorten it, raise {keeping.field} or set data.too_long=drop"
            )
        if len(rows) == BATCH:
            yield pa.RecordBatch.from_pylist(rows, schema=schema)
            rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=schema)
