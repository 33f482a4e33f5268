"""The table of seeds: what it shows, what it leaves out, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf.analysis.seeds import read_summaries, table
from rlhf.errors import ArtifactError


def write_run(folder: Path, **ppo: object) -> Path:
    figures = {"gold_before": 0.4, "gold_after": 0.65, "win_rate": 0.8, "win_rate_ci": [0.7, 0.9], "kl": 3.0} | ppo
    reward = {"accuracy": 0.72, "accuracy_ci": [0.7, 0.74], "bayes_accuracy": 0.8}
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"run": "x", "seconds": 99.6, "reward": reward, "ppo": figures}))
    return folder


def test_figures_stand_under_their_names(tmp_path: Path) -> None:
    head, _, row = table(read_summaries([write_run(tmp_path / "a-1")])).splitlines()
    cells = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert cells["run"] == "a-1"
    assert cells["seconds"] == "100"
    assert cells["rise"] == "+0.250"
    assert cells["reward / Bayes"] == "0.720 / 0.800 = 0.900"
    assert "second gold" not in cells


def test_a_column_stays_if_one_run_has_it(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", second_gold_before=0.1, second_gold_after=0.2)]
    lines = table(read_summaries(runs)).splitlines()
    assert "second gold" in lines[0]
    assert "0.100 to 0.200" in lines[3]


def test_scores_of_a_judge_that_is_no_gold_have_columns_of_their_own(tmp_path: Path) -> None:
    without = write_run(tmp_path / "a", judged_before=1.0, judged_after=1.5)
    summary = json.loads((without / "summary.json").read_text())
    del summary["ppo"]["gold_before"], summary["ppo"]["gold_after"]
    (without / "summary.json").write_text(json.dumps(summary))
    head, _, row = table(read_summaries([without])).splitlines()
    cells = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert (cells["judged before"], cells["judged after"], cells["rise"]) == ("1.000", "1.500", "+0.500")
    assert "gold before" not in cells


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no complete run"):
        read_summaries([tmp_path])
