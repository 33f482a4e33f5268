"""Responses as parquet, so that thousands of them stay searchable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet


def write_samples(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of equal columns as one parquet file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), partial)
    partial.replace(path)
