"""Agreement against an independent computation, and a report of votes whose makers are known."""

from __future__ import annotations

import gzip
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from published import DATA, require_data
from typer.testing import CliRunner

from data.labelling.attention import DRIFT_P, Habits, Share, of_annotators
from data.labelling.ledger import Ledger, Project
from data.labelling.pairs import Pair
from data.labelling.pulling import write_files
from data.labelling.reporting import _permuted, report_of
from data.labelling.state import State
from data.labelling.votes import account_of
from launch.cli import app
from rlhf.analysis.agreement import agreement, tallied
from rlhf.types import Prompt

HABITS = {"1": "right", "2": "right", "3": "chance", "4": "left", "5": "against", "6": "tires", "7": "right"}


def project(folder: Path, pairs: int = 160) -> Ledger:
    """Everybody of HABITS has voted on every pair, a tenth of which are gold; the first response is the better one."""
    ledger, draw = Ledger(folder), random.Random(7)
    folder.mkdir(exist_ok=True)
    ledger.keep_project(Project("http://127.0.0.1:1", 3, "known <people>", "2026-11-28T00:00:00Z", 0))
    made = [
        Pair(Prompt(f"q{n}"), "good", "bad", kind="ab"[n % 2], answer="first" if n % 10 == 0 else None)
        for n in range(pairs)
    ]
    state = State()
    for number, entry in enumerate(ledger.add(made, 0)):
        right, wrong = ("A", "B") if entry.first_is_a else ("B", "A")
        records = []
        for person, habit in HABITS.items():
            good = {"right": 0.95, "chance": 0.5, "left": float(right == "A"), "against": 0.05}.get(habit, 0.95)
            if habit == "tires" and number > pairs / 2:
                good = 0.5
            seconds = 1.0 if habit == "chance" else draw.lognormvariate(2.3, 0.3)
            said = right if draw.random() < good else wrong
            value = {"from_name": "preference", "value": {"choices": [said]}}
            when = f"2026-11-{1 + number // 10:02d}T12:{number % 10:02d}:00.000000Z"
            records.append(
                {"id": number * 10 + int(person), "completed_by": int(person), "updated_by": int(person)}
                | {"updated_at": when, "lead_time": seconds, "was_cancelled": False, "result": [value]}
            )
        state.take({"id": number, "updated_at": "x", "data": entry.data(), "annotations": records})
    state.write(folder)
    return ledger


def test_attention_goes_to_those_who_need_it(tmp_path: Path) -> None:
    report, account = report_of(project(tmp_path))
    lines: dict[str, list[str]] = defaultdict(list)
    for line in report.attention:
        lines[line.partition(":")[0]].append(line)
    assert set(lines) >= {"3", "4", "5", "6"} and not {"1", "2", "7"} & set(lines)
    assert any("takes 1.0 s for a vote" in line for line in lines["3"])
    assert any("prefers the response shown first whatever it says" in line for line in lines["4"])
    assert any("votes against the gold answers" in line for line in lines["5"])
    assert any("agreement with the majority of the others went from" in line for line in lines["6"])
    assert len(account.votes) == 7 * 160 and report.kinds == {"a": (80, 80), "b": (80, 80)}
    assert report.alpha_interval is not None and report.alpha is not None
    assert report.alpha_interval[0] < report.alpha < report.alpha_interval[1]


def test_a_drift_is_found_however_many_are_asked() -> None:
    pool = np.array([0.0] * 60 + [1.0] * 60)
    assert _permuted(pool, 60, 20_000) < DRIFT_P / 400
    assert _permuted(np.tile([0.0, 1.0], 60), 60, 20_000) > 0.5


def test_few_answers_and_small_differences_are_no_reason() -> None:
    share = Share.counted(0, 0)

    def habits(gold: Share, agreement: Share) -> Habits:
        return Habits("1", "ann", {"valid": 0, "tie": 0}, gold, agreement, None, share, share, share, [])

    others = habits(share, Share(0.8, (0.78, 0.82), 900))
    for wrong, told in ((9, 0), (10, 1)):
        assert len(of_annotators([habits(Share.counted(0, wrong), share), others])) == told
    for upper, told in ((0.75, 0), (0.65, 1)):
        assert len(of_annotators([habits(share, Share(upper, (upper, upper), 900)), others])) == told


def test_the_command_writes_a_page_of_its_own_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels").mkdir()
    project(tmp_path / "labels" / "people", 40)
    done = CliRunner().invoke(app, ["label", "report", "--project", "people", "--json"])
    assert done.exit_code == 0
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["title"] == "known <people>" and len(found["annotators"]) == 7
    page = (tmp_path / found["page"]).read_text()
    assert "known &lt;people&gt;" in page and "known <people>" not in page and page.count("data:image/png") == 1
    told = CliRunner().invoke(app, ["label", "report", "--project", "people"])
    assert told.exit_code == 0 and "Krippendorff's alpha" in told.stdout and "\x1b" not in told.stdout


def test_votes_on_gold_pairs_are_no_training_data(tmp_path: Path) -> None:
    ledger = project(tmp_path, 40)
    account = account_of(State.load(tmp_path).tasks.values(), ledger.entries, [])
    counts = write_files(ledger, account)
    assert (counts["votes"], counts["votes_on_gold"], counts["pairs_with_votes"]) == (7 * 36, 7 * 4, 40)
    gold = {pair for pair, entry in ledger.entries.items() if entry.pair.answer}
    votes = [json.loads(line)["pair"] for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert not gold & set(votes) and len(votes) == 7 * 36


def test_agreement_of_real_votes_equals_an_independent_computation() -> None:
    """PandaLM's three annotators, by the package krippendorff."""
    require_data()
    with gzip.open(DATA / "pairs" / "pandalm_testset_3annot.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    names = ("annotator1", "annotator2", "annotator3")
    votes = [(number, record[name]) for number, record in enumerate(records) for name in names]
    found = agreement(tallied(votes))
    table = np.array([[float(record[name]) for record in records] for name in names])
    assert found is not None and found.alpha == pytest.approx(
        krippendorff.alpha(reliability_data=table, level_of_measurement="nominal"), abs=1e-12
    )
