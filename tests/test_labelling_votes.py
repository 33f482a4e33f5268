"""What an annotation says, and votes from what a server holds: without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from labelled import NOW, PAIR, write

from data.labelling.annotations import Annotation, parse
from data.labelling.ledger import Entry
from data.labelling.state import State
from data.labelling.votes import account_of, vote_record
from data.locations import files_of
from data.reading import Reading
from rlhf.config import SourceConfig
from rlhf.types import Comparison


def choice(*values: Any) -> dict[str, Any]:
    return {"from_name": "preference", "to_name": "prompt", "type": "choices", "value": {"choices": list(values)}}


def record(result: Any, **fields: Any) -> dict[str, Any]:
    """An annotation as the server's export has it."""
    known = {"id": 1, "completed_by": 7, "updated_by": 7, "was_cancelled": False, "lead_time": 3.5}
    return {**known, "created_at": NOW, "updated_at": NOW, "result": result, **fields}


def rating(name: str, stars: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": "response_a", "type": "rating", "value": {"rating": stars}}


# What an annotation says.


def test_an_annotation_says_what_the_page_sends() -> None:
    result = [
        {"id": "x", "origin": "manual", **choice("B")},
        rating("honesty_a", 2),
        {"from_name": "reason", "to_name": "prompt", "type": "textarea", "value": {"text": ["it is", "better"]}},
    ]
    expected = Annotation(
        1, "7", "valid", "", "B", {"honesty": {"a": 2}}, "it is\nbetter", seconds=3.5, time=1795867200.0
    )
    assert parse(record(result), ["honesty"]) == expected


def test_a_tie_a_skip_and_another_s_hand_are_classes_of_their_own() -> None:
    assert parse(record([choice("tie")]), []).kind == "tie"
    assert parse(record([choice("A")], was_cancelled=True), []).kind == "skipped"
    assert parse(record([], was_cancelled=True), []).kind == "skipped"
    edited = parse(record([choice("A")], updated_by=8), [])
    assert (edited.kind, edited.why) == ("edited", "last written by 8")
    assert parse(record([choice("A")], updated_by=None), []).kind == "valid"
    assert parse(record([choice("A")], completed_by={"id": 7, "email": "ann@example.com"}), []).annotator == "7"


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (None, "result=None is not a list"),
        ({}, "result={} is not a list"),
        ([], "an empty result"),
        (["A"], "an item of the result is 'A', not an object"),
        ([choice("C")], "preference='C' is not A, B, tie"),
        ([choice("a")], "preference='a' is not A, B, tie"),
        ([choice("A", "B")], "preference=['A', 'B'] is not one choice"),
        ([choice()], "preference=[] is not one choice"),
        ([choice(["A"])], "preference=['A'] is not A, B, tie"),
        ([{**choice("A"), "value": {"choices": "A"}}], "preference='A' is not one choice"),
        ([{**choice("A"), "value": None}], "preference has no value"),
        ([{"from_name": "preference"}], "preference has no value"),
        ([{**choice("A"), "from_name": "mood"}], "from_name='mood' is no field of the page"),
        ([{**choice("A"), "from_name": ["preference"]}], "from_name=['preference'] is no field of the page"),
        ([choice("A"), choice("A")], "preference is answered twice"),
        ([rating("honesty_a", 3)], "no preference"),
        ([choice("A"), rating("honesty_a", 6)], "honesty_a=6 is not a whole number from 1 to 5"),
        ([choice("A"), rating("honesty_a", 0)], "honesty_a=0 is not a whole number from 1 to 5"),
        ([choice("A"), rating("honesty_a", True)], "honesty_a=True is not a whole number from 1 to 5"),
        ([choice("A"), rating("honesty_a", "4")], "honesty_a='4' is not a whole number from 1 to 5"),
        ([choice("A"), rating("beauty_a", 4)], "from_name='beauty_a' is no field of the page"),
        ([choice("A"), {"from_name": "reason", "value": {"text": [1]}}], "reason=[1] is not a text"),
    ],
)
def test_what_no_page_sends_is_malformed(result: Any, why: str) -> None:
    found = parse(record(result), ["honesty"])
    assert (found.kind, found.why, found.choice) == ("malformed", why, None)


def test_a_time_that_cannot_be_used_is_none_and_costs_no_vote() -> None:
    for bad in (None, -1, "3", float("nan"), True):
        assert parse(record([choice("A")], lead_time=bad), []) == parse(record([choice("A")], lead_time=None), [])
    assert parse(record([choice("A")], updated_at="yesterday"), []).kind == "malformed"
    for bad in (None, "7", True, {}):
        with pytest.raises(ValueError, match="completed_by"):
            parse(record([choice("A")], completed_by=bad), [])


# Votes.


def task(number: int, entry: Entry, *annotations: dict[str, Any], **data: str) -> dict[str, Any]:
    return {"id": number, "updated_at": NOW, "data": {**entry.data(), **data}, "annotations": list(annotations)}


def classes(state: State, *entries: Entry) -> dict[str, int]:
    account = account_of(state.tasks.values(), {entry.pair.id: entry for entry in entries}, [])
    return {kind: count for kind, count in account.counts().items() if count}


@pytest.mark.parametrize("first_is_a", [True, False])
@pytest.mark.parametrize("said", ["A", "B", "tie"])
def test_a_vote_is_about_the_texts_that_were_seen(said: str, first_is_a: bool, tmp_path: Path) -> None:
    entry, state = Entry(PAIR, first_is_a), State()
    state.take(task(3, entry, record([choice(said)])))
    account = account_of(state.tasks.values(), {PAIR.id: entry}, [])
    path = write(tmp_path / "votes.jsonl", *map(vote_record, account.votes))
    (vote,) = Reading(SourceConfig(path=path), files_of(path, None), "comparisons")
    seen = (entry.data()["response_a"], entry.data()["response_b"])
    better, worse = seen[::-1] if said == "B" else seen
    finished = {"because": True, "no idea": False}
    assert vote == Comparison(
        PAIR.prompt,
        better,
        worse,
        tie=said == "tie",
        annotator="7",
        chosen_shown_first=said != "B",
        seconds=3.5,
        chosen_finished=finished[better],
        rejected_finished=finished[worse],
        time=1795867200.0,
        kind="why",
    )


def test_the_newest_of_one_annotator_counts_over_all_tasks_of_a_pair() -> None:
    entry, state = Entry(PAIR, True), State()
    later = "2026-11-28T13:00:00Z"
    state.take(task(1, entry, record([choice("A")], id=1), record([choice("B")], id=2, updated_at=later)))
    state.take(task(2, entry, record([choice("tie")], id=3), record([choice("A")], id=4, completed_by=8, updated_by=8)))
    account = account_of(state.tasks.values(), {PAIR.id: entry}, [])
    assert {(vote.annotation.number, vote.prefers) for vote in account.votes} == {(2, "second"), (4, "first")}
    assert classes(state, entry) == {"valid": 2, "duplicate": 2}


def test_what_cannot_be_read_displaces_no_vote() -> None:
    entry, state = Entry(PAIR, True), State()
    later = "2026-11-28T13:00:00Z"
    bad = [record([choice("C")], id=2, updated_at=later), record([choice("B")], id=3, updated_at=later, updated_by=8)]
    state.take(task(1, entry, record([choice("A")], id=1), *bad))
    assert classes(state, entry) == {"valid": 1, "malformed": 1, "edited": 1}
    skipped = record([], id=4, was_cancelled=True, updated_at=later)
    state.take(task(1, entry, record([choice("A")], id=1), skipped))
    assert classes(state, entry) == {"skipped": 1, "duplicate": 1, "deleted": 2}


def test_one_s_own_version_counts_once_another_has_written_over_it() -> None:
    entry, state = Entry(PAIR, True), State()
    state.take(task(1, entry, record([choice("A")])))
    for _ in range(2):  # also when it is written over again
        state.take(task(1, entry, record([choice("B")], updated_by=8)))
        account = account_of(state.tasks.values(), {PAIR.id: entry}, [])
        assert [vote.prefers for vote in account.votes] == ["first"]
        assert classes(state, entry) == {"valid": 1}  # once
        assert [each.annotation.kind for each in account.overwritten] == ["edited"]
    state.take(task(1, entry, record([choice("tie")])))
    assert classes(state, entry) == {"tie": 1}


def test_what_is_gone_is_kept_and_is_no_vote(tmp_path: Path) -> None:
    entry, state = Entry(PAIR, True), State()
    state.take(task(1, entry, record([choice("A")], id=1), record([choice("A")], id=2, completed_by=8, updated_by=8)))
    state.take(task(1, entry, record([choice("A")], id=1)))
    state.lose(1)
    state.write(tmp_path)
    assert classes(State.load(tmp_path), entry) == {"deleted": 2}


def test_tasks_of_others_and_changed_texts_give_no_votes() -> None:
    entry, state = Entry(PAIR, True), State()
    state.take(task(1, entry, record([choice("A")]), response_a="something else"))
    state.take(task(2, entry, record([choice("A")], id=2), pair_id="of another"))
    state.take({**task(3, entry, record([choice("A")], id=3)), "data": {"text": 7}})
    state.take(task(4, entry, record([choice("A")], id=4, completed_by=None)))
    assert classes(state, entry) == {"malformed": 4}
