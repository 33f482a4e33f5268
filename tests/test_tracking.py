"""What trackers write."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet

from rlhf.tracking.jsonl import JsonlTracker


def test_every_line_is_strict_json_whatever_the_figures_are(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    tracker.log(1, {"loss/policy": float("nan"), "policy/grad_norm": float("inf"), "objective/kl": 0.5})
    tracker.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    figures = json.loads(line, parse_constant=refuse)
    assert (figures["step"], figures["objective/kl"]) == (1, 0.5)
    assert figures["loss/policy"] is figures["policy/grad_norm"] is None


def test_tables_are_parquet_with_all_rows(tmp_path: Path) -> None:
    tracker = JsonlTracker(tmp_path)
    rows = [{"prompt": "p", "score": 1.5}, {"prompt": "ü\n", "score": -2.0}]
    tracker.table(7, "held-out", rows)
    tracker.close()
    assert pyarrow.parquet.read_table(tmp_path / "samples" / "held-out-000007.parquet").to_pylist() == rows
