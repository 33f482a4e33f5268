"""The check of comparisons: every planted fault is found and counted, what is sound passes, what is dropped is told."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from planted import PLANTED, SWAPPED_LABELS, sound, swapped, write

from data.quality.check import Checked, Tokens, check_votes
from data.quality.votes import votes_of_files
from rlhf.config import CheckConfig, DataConfig, LimitsConfig, SourceConfig
from rlhf.errors import DataError
from rlhf.types import Comparison

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


def test_an_annotator_with_swapped_labels_is_named(tmp_path: Path) -> None:
    votes, _ = SWAPPED_LABELS(sound())
    found = findings(write(tmp_path / "swapped.jsonl", votes))
    assert found["low_agreement"].severity == "fail"
    assert found["low_agreement"].examples[0]["annotator"] == "fay"
    assert found["contradiction"].severity == "info"  # each of them is true to himself


def test_different_annotators_disagree_and_one_contradicts_himself(tmp_path: Path) -> None:
    votes = sound()
    differing = [{**swapped(vote), "annotator": "dan"} for vote in votes[:3]]
    found = findings(write(tmp_path / "votes.jsonl", [*votes, *differing]))["contradiction"]
    assert (found.count, found.severity) == (3, "info") and "3 more by different annotators" in found.message
    found = findings(write(tmp_path / "votes.jsonl", [*votes, *differing, swapped(votes[9])]))["contradiction"]
    assert (found.count, found.severity) == (4, "warn")


def test_one_annotator_who_takes_the_first_is_named(tmp_path: Path) -> None:
    votes = [{**vote, "annotator": "ann" if number % 6 else "bob"} for number, vote in enumerate(sound())]
    votes = [{**vote, "chosen_shown_first": vote["chosen_shown_first"] or vote["annotator"] == "bob"} for vote in votes]
    found = findings(write(tmp_path / "votes.jsonl", votes))["position_bias"]
    assert [example["annotator"] for example in found.examples] == ["bob"] and found.severity == "warn"


def test_the_order_of_which_nothing_is_known_has_no_bias(tmp_path: Path) -> None:
    votes = [{name: vote[name] for name in ("prompt", "chosen", "rejected")} for vote in sound()]
    verdict = checked(write(tmp_path / "votes.jsonl", votes)).verdict
    assert verdict.summary["first_shown_wins"] is None and verdict.findings == []


def test_names_of_files_tell_the_splits(tmp_path: Path) -> None:
    votes = sound()
    again = [{**vote, "chosen": f"{vote['rejected']} yes.", "rejected": f"no, {vote['chosen']}"} for vote in votes[:9]]
    train = write(tmp_path / "train.jsonl", votes[:200])
    found = findings(train, write(tmp_path / "test.jsonl", [*again, *votes[200:]]))
    assert (found["leakage"].count, found["leakage"].severity) == (9, "warn")
    assert "leakage" not in findings(train, write(tmp_path / "latest.jsonl", [*again, *votes[200:]]))


def test_rated_texts_share_their_prompt_without_leaking(tmp_path: Path) -> None:
    texts = [{"text": vote["chosen"], "mean": number % 7} for number, vote in enumerate(sound())]
    source = SourceConfig(path="given", bad_records="drop", prompt="Rate this.")
    votes = votes_of_files([write(tmp_path / "ratings.jsonl", texts)], source, DataConfig())
    kinds = {finding.kind for finding in check_votes(votes, CheckConfig()).verdict.findings}
    assert kinds <= {"tie"}


def test_tokens_are_counted_against_the_context(tmp_path: Path) -> None:
    def measure(vote: Comparison) -> int:
        return len(vote.prompt.text) + max(len(vote.chosen), len(vote.rejected))

    votes = sound()
    lengths = sorted(len(v["prompt"]) + max(len(v["chosen"]), len(v["rejected"])) for v in votes)
    found = findings(write(tmp_path / "votes.jsonl", votes), tokens=Tokens(measure, lengths[-6], frozenset({"zzzz"})))
    assert found["too_long"].count == sum(length > lengths[-6] for length in lengths) > 0
    assert found.keys() == {"too_long"}


def test_limits_decide_how_bad_a_share_is(tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", PLANTED["duplicate"](sound())[0])
    for limits, severity in (({}, "info"), ({"warn": 0.5}, "info"), ({"warn": 0.0}, "warn"), ({"fail": 0.02}, "fail")):
        assert findings(path, duplicate=LimitsConfig(**limits))["duplicate"].severity == severity


def test_nothing_to_check_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a text with content"):
        checked(write(tmp_path / "votes.jsonl", [{"prompt": "a", "chosen": "", "rejected": "b"}]))


def test_memory_grows_by_a_few_bytes_a_vote(tmp_path: Path) -> None:
    path = write(tmp_path / "votes.jsonl", sound(6000))
    peaks = []
    for count in (2000, 6000):
        votes = votes_of_files([path], SourceConfig(path="x", count=count), DataConfig())
        tracemalloc.start()
        check_votes(votes, CheckConfig())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 4000 < 200
