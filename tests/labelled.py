"""Pairs, and files of records, as tests of labelling have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.labelling.pairs import Pair
from rlhf.types import Prompt

NOW = "2026-11-28T12:00:00.000000Z"
PAIR = Pair(Prompt("why ?"), "because", "no idea", second_finished=False, kind="why")


def write(path: str | Path, *records: Any) -> str:
    """A file of records, one a line."""
    Path(path).write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


def pairs_of(kind: str | None, count: int) -> list[Pair]:
    return [Pair(Prompt(f"{kind} {n}"), "a", "b", kind=kind) for n in range(count)]
