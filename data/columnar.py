"""Records of Parquet files and of Arrow streams, as `datasets.save_to_disk` writes them, by batches.

A null in a column is a field that the record does not have: columns hold a value for every row, known or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from data.records import BadRecord, DataFile, Record, one_line
from rlhf.errors import DataError

ROWS = 512  # read together
# Piece by piece and without reading ahead, so that memory stays small; checksums are compared where there are some.
_READING: dict[str, Any] = {"pre_buffer": False, "buffer_size": 2**20, "page_checksum_verification": True}
# The mark that ends an Arrow stream. Readers take a stream without it for a whole one, though its tail may be lost.
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(file: DataFile) -> Iterator[Record | BadRecord]:
    """Rows of a Parquet file."""
    import pyarrow.parquet  # half of pyarrow's loading time

    try:
        with pyarrow.parquet.ParquetFile(file.path, **_READING) as parquet:
            _require_names(file, parquet.schema_arrow)
            found = 0
            for row in _rows(file, parquet.iter_batches(batch_size=ROWS)):
                found += 1
                yield row
            if found != parquet.metadata.num_rows:  # a damaged group of rows may end early, without an error
                told = f"{found:,} of its {parquet.metadata.num_rows:,} rows are there"
                raise DataError(f"{file.name}: cannot be read as Parquet ({told}); give a whole file")
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{file.name}: cannot be read as Parquet ({one_line(error)}); give a whole file") from error


def read_arrow(file: DataFile) -> Iterator[Record | BadRecord]:
    """Rows of an Arrow stream."""
    try:
        with pa.memory_map(str(file.path)) as source:
            if source.size() and source.read_at(len(END_OF_STREAM), max(0, source.size() - 8)) != END_OF_STREAM:
                raise DataError(f"{file.name}: an Arrow stream without its end; give a whole file")
            with pa.ipc.open_stream(source) as stream:
                _require_names(file, stream.schema)
                yield from _rows(file, (part for batch in stream for part in _pieces(batch)))
            if source.tell() != source.size():  # damage that looks like the end of the stream
                raise DataError(f"{file.name}: an Arrow stream with more behind its end; give a whole file")
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"{file.name}: cannot be read as an Arrow stream ({one_line(error)}); give what save_to_disk wrote"
        ) from error


def _require_names(file: DataFile, schema: pa.Schema) -> None:
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise DataError(f"{file.name}: two columns are named {twice[0]!r}; give each a name of its own")


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    batch.validate(full=True)  # a damaged offset would otherwise be followed out of the file
    for start in range(0, batch.num_rows, ROWS):
        yield batch.slice(start, ROWS)


def _rows(file: DataFile, batches: Iterator[pa.RecordBatch]) -> Iterator[Record | BadRecord]:
    number = 0
    for batch in batches:
        for row in _values(batch):
            number += 1
            place = f"{file.name}, record {number}"
            if isinstance(row, BadRecord):
                yield BadRecord(place, row.problem)
            else:
                yield Record(place, {name: value for name, value in row.items() if value is not None})


def _values(batch: pa.RecordBatch) -> list[dict[str, Any] | BadRecord]:
    try:
        rows: list[dict[str, Any] | BadRecord] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError):  # one value that python cannot hold; the others can be had row by row
        return [_value(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _value(row: pa.RecordBatch) -> dict[str, Any] | BadRecord:
    try:
        fields: dict[str, Any] = row.to_pylist()[0]
        return fields
    except (ValueError, OverflowError) as error:
        return BadRecord("", f"a value that cannot be read ({one_line(error)})")
