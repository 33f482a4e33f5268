"""Responses as parquet, so that thousands of them stay searchable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from rlhf.types import Prompt

TURNS = "turns"  # the column that `conversations` makes


def write_samples(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of equal columns as one parquet file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), partial)
    partial.replace(path)


def conversations(prompts: Sequence[Prompt]) -> dict[str, list[str | None]]:
    """A column with the turns of those that are conversations, as JSON; no column where all are plain texts.

    The text of a prompt does not say who spoke, and who labels its responses must hand on the very same prompt.
    """
    turns = [None if isinstance(prompt.content, str) else _written(prompt) for prompt in prompts]
    return {TURNS: turns} if any(turns) else {}


def _written(prompt: Prompt) -> str:
    return json.dumps([vars(message) for message in prompt.content], ensure_ascii=False)
