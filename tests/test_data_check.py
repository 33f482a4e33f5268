"""The check of comparisons: every planted fault is found and counted, what is sound passes, what is dropped is told."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from planted import NEAR_CONTRADICTION, PLANTED, SWAPPED_LABELS, sound, swapped, write

from data.quality.check import Checked, check_votes
from data.quality.survey import Tokens
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


def test_nearly_the_same_pairs_contradict_each_other(tmp_path: Path) -> None:
    votes, count = NEAR_CONTRADICTION(sound())
    verdict = checked(path := write(tmp_path / "votes.jsonl", votes)).verdict
    found = next(finding for finding in verdict.findings if finding.kind == "contradiction")
    assert (found.count, found.severity) == (count, "warn") and f"{count} more with one that is nearly" in found.message
    assert verdict.summary["contradictions"]["same"] == 0 and verdict.summary["contradictions"]["nearly_same"] == count
    for example in found.examples:
        one, other = (int(place.rsplit(":", 1)[1]) - 1 for place in (example["place"], example["what"]))
        assert other - one == 400 and example["what"].endswith(path.rsplit("/", 1)[1] + f":{other + 1}")
    exact = [swapped(vote) for vote in votes[20:23]]
    found = findings(write(tmp_path / "votes.jsonl", [*votes, *exact]))["contradiction"]
    assert found.count == count + 3 and found.message.startswith("3 of 408 pairs")
    assert [" nearly " in f" {example['what']}" for example in found.examples] == [False] * 3 + [True] * 2


def test_near_pairs_of_different_annotators_disagree(tmp_path: Path) -> None:
    votes, count = NEAR_CONTRADICTION(sound())
    votes = [{**vote, "annotator": "dan"} if number >= 400 else vote for number, vote in enumerate(votes)]
    found = findings(write(tmp_path / "votes.jsonl", votes))["contradiction"]
    assert (found.count, found.severity) == (count, "info")
    assert f"{count} more by different annotators" in found.message


def test_which_of_two_alike_responses_won_is_not_guessed(tmp_path: Path) -> None:
    """Both responses nearly the same: another pair like it may be turned or not."""
    alike = [{**vote, "rejected": f"{vote['chosen'][:-1]} now."} for vote in sound(400)]
    nearly = [{**swapped(vote), "chosen": f"so {vote['rejected']}"} for vote in alike[:20]]
    found = findings(write(tmp_path / "votes.jsonl", [*alike, *nearly]))
    assert found["near_duplicate"].count == 20 and "contradiction" not in found


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


def test_bad_records_of_rated_files_are_counted(tmp_path: Path) -> None:
    texts: list[Any] = [{"text": vote["chosen"], "mean": number % 7} for number, vote in enumerate(sound(100))]
    texts[50:50] = [{"text": "a", "mean": "much"}] * 20
    source = SourceConfig(path="given", bad_records="drop", prompt="Rate this.")
    votes = votes_of_files([write(tmp_path / "ratings.jsonl", texts)], source, DataConfig())
    found = {finding.kind: finding for finding in check_votes(votes, CheckConfig()).verdict.findings}["malformed"]
    assert (found.count, found.severity) == (20, "fail") and "20 of 120 records" in found.message
    bad: list[Any] = []
    assert len(list(votes.read(lambda _, record: bad.append(record)))) == 50 and len(bad) == 20


def test_the_share_of_bad_records_is_of_records_however_many_votes_others_hold(tmp_path: Path) -> None:
    five = [{"prefers": side} for side in ("chosen", "chosen", "chosen", "rejected", "tie")]
    votes = [{name: vote[name] for name in ("prompt", "chosen", "rejected")} | {"votes": five} for vote in sound(70)]
    bad = [{"prompt": "why?", "chosen": 3, "rejected": "a"}] * 30
    found = findings(write(tmp_path / "votes.jsonl", [*votes, *bad]))
    assert found["malformed"].severity == "fail" and "30 of 100 records (30.0%)" in found["malformed"].message
    assert "70 of 350 votes" in found["tie"].message


def test_unnamed_votes_of_one_record_are_of_different_people(tmp_path: Path) -> None:
    five = [{"prefers": side} for side in ("chosen", "chosen", "chosen", "rejected", "rejected")]
    votes: list[Any] = [{**vote, "votes": five} for vote in sound(60)]
    for vote in votes:
        del vote["annotator"], vote["chosen_shown_first"]
    found = findings(write(tmp_path / "votes.jsonl", votes))
    assert found.keys() == {"contradiction"} and found["contradiction"].severity == "info"
    found = findings(write(tmp_path / "votes.jsonl", [*votes, *votes[:6]]))
    assert found["duplicate"].count == 30 and found["contradiction"].severity == "info"
    other = [{**swapped(vote), "votes": [{"prefers": "chosen"}] * 3} for vote in votes[:6]]
    found = findings(write(tmp_path / "votes.jsonl", [*votes, *other]))
    assert found["contradiction"].count == 60 and "6 of 60 pairs" in found["contradiction"].message


def test_few_pairs_and_many_who_are_asked_make_nobody_contrary(tmp_path: Path) -> None:
    votes = sound()
    several = [{**vote, "annotator": name} for vote in votes[:8] for name in ("dan", "eve", "gus")]
    against = [{**swapped(vote), "annotator": "fay"} for vote in votes[:8]]
    verdict = checked(write(tmp_path / "votes.jsonl", [*votes[8:], *several, *against])).verdict
    assert verdict.summary["annotators"]["fay"]["agrees_with_others"]["votes"] == 8
    assert not [f for f in verdict.findings if f.kind == "low_agreement" and f.examples]


@pytest.mark.parametrize(("one", "other"), [("-5", "5"), ("C#", "C"), ("a", "A"), ("_x_", "x"), ("x²", "x2")])
def test_a_mark_may_be_the_answer(tmp_path: Path, one: str, other: str) -> None:
    votes = [*sound(), {"prompt": "how much?", "chosen": one, "rejected": other}]
    assert "identical" not in findings(write(tmp_path / "votes.jsonl", votes))
    votes[-1] = {"prompt": "how much?", "chosen": f"{one}.", "rejected": f" {one}"}
    assert findings(write(tmp_path / "votes.jsonl", votes))["identical"].count == 1


def test_near_duplicates_are_no_chain(tmp_path: Path) -> None:
    """Each has some words of the one before exchanged, so that the last has hardly any of the first."""
    votes, filler = sound(40), sound(400, seed=9)
    words = [word for vote in filler for word in vote["chosen"].split()]
    text = [" ".join(words[n * 60 : n * 60 + 60]).split() for n in range(3)]
    chain = []
    for step in range(12):
        made = [" ".join([*words[900 : 900 + 3 * step], *each[3 * step :]]) for each in text]
        chain.append({"prompt": f"{made[0]}?", "chosen": f"{made[1]}.", "rejected": f"{made[2]} so."})
    repeats = checked(write(tmp_path / "votes.jsonl", [*votes, *chain])).repeats
    near, nearest = repeats.near_duplicate[40:], repeats.partners["near_duplicate"][40:]
    assert 0 < near.sum() < 11 and not near[0]
    assert not repeats.near_duplicate[nearest[near]].any()


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
