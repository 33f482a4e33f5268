"""The check of comparisons: every planted fault is found and counted, what is sound passes, what is dropped is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planted import PLANTED, SWAPPED_LABELS, sound, swapped, write

from data.quality.check import Checked, Tokens, check_votes
from data.quality.votes import votes_of_files
from rlhf.config import CheckConfig, DataConfig, SourceConfig
from rlhf.errors import DataError

BAD = {"warn", "fail"}
INFORMATION = {"tie", "truncated", "language"}
# What else a planted fault brings about.
WITH = {
    "duplicate": {"leakage"},
    "near_duplicate": {"leakage"},
    "low_agreement": {"contradiction", "leakage"},
    "identical": set(),
    "language": {"truncated"},
    "empty": {"length_bias"},
}


def checked(*files: str, tokens: Tokens | None = None, **limits: Any) -> Checked:
    source = SourceConfig(path="given", bad_records="drop")
    return check_votes(votes_of_files(files, source, DataConfig()), CheckConfig(**limits), tokens)


def findings(*files: str, **options: Any) -> dict[str, Any]:
    return {finding.kind: finding for finding in checked(*files, **options).verdict.findings}


@pytest.mark.parametrize("seed", range(5))
def test_what_is_sound_passes_without_a_finding(tmp_path: Path, seed: int) -> None:
    found = checked(write(tmp_path / "sound.jsonl", sound(seed=seed))).verdict
    assert (found.verdict, found.findings) == ("pass", [])


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_found_and_counted(tmp_path: Path, kind: str) -> None:
    votes, count = PLANTED[kind](sound())
    found = findings(write(tmp_path / "planted.jsonl", votes))
    assert found[kind].count == count
    assert found[kind].severity in ({"info"} if kind in INFORMATION else BAD)
    assert found.keys() <= {kind} | WITH.get(kind, set())
    if kind not in ("length_bias", "position_bias", "low_agreement"):
        assert 1 <= len(found[kind].examples) <= 5 and all("place" in example for example in found[kind].examples)


@pytest.mark.parametrize("kind", PLANTED)
def test_examples_stand_where_they_say(tmp_path: Path, kind: str) -> None:
    votes, _ = PLANTED[kind](sound())
    path = write(tmp_path / "planted.jsonl", votes)
    for example in findings(path)[kind].examples:
        if "place" not in example:
            continue
        file, line = example["place"].rsplit(":", 1)
        record = votes[int(line) - 1]
        assert file == path and ("prompt" not in example or repr(record["prompt"])[1:30] in example["prompt"])
