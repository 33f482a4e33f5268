"""Pairs, their order and their sides, what an annotation says, and votes from what a server holds: all without one."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from data.labelling import pushing
from data.labelling.annotations import Annotation, parse
from data.labelling.client import Away
from data.labelling.ledger import Busy, Entry, Ledger, Project, directory_of, first_is_a, read_lines
from data.labelling.order import ordered
from data.labelling.page import check_dimensions, missing_controls, page
from data.labelling.pairs import Pair, read_gold, read_pairs
from data.labelling.sampled import pairs_of_run
from data.labelling.server import LabelStudio, checked_url, is_loopback
from data.labelling.state import State
from data.labelling.votes import account_of, vote_record
from data.labelling.watching import HEADER, PATH, Listener, Watch
from data.locations import files_of
from data.reading import Reading
from launch.cli import app
from launch.label_studio import environment, kept_secret, owner_of
from rlhf.config import SourceConfig
from rlhf.errors import ArtifactError, ConfigError, DataError, LabellingError
from rlhf.store.samples import conversations, write_samples
from rlhf.types import Comparison, Message, Prompt

NOW = "2026-11-28T12:00:00.000000Z"
PAIR = Pair(Prompt("why ?"), "because", "no idea", second_finished=False, kind="why")


def choice(*values: Any) -> dict[str, Any]:
    return {"from_name": "preference", "to_name": "prompt", "type": "choices", "value": {"choices": list(values)}}


def record(result: Any, **fields: Any) -> dict[str, Any]:
    """An annotation as the server's export has it."""
    known = {"id": 1, "completed_by": 7, "updated_by": 7, "was_cancelled": False, "lead_time": 3.5}
    return {**known, "created_at": NOW, "updated_at": NOW, "result": result, **fields}


def rating(name: str, stars: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": "response_a", "type": "rating", "value": {"rating": stars}}


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


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


# Pairs, their order, their sides.


def test_pairs_come_from_votes_and_from_responses(tmp_path: Path) -> None:
    votes = write(
        tmp_path / "votes.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "b", "category": "x"},
        {"prompt": "p", "chosen": "b", "rejected": "a", "category": "x"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "votes": [{"prefers": "tie"}, {"prefers": "rejected"}]},
    )
    sampled = write(
        tmp_path / "sampled.jsonl",
        {"prompt": "r", "responses": ["a", "b", "c"], "finished": [True, False, True]},
        {"prompt": "s", "responses": ["a", "a"]},
    )
    equal = write(
        tmp_path / "equal.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    )
    assert (read_pairs([equal]).identical, read_pairs([equal]).bad) == (1, [])
    pairs = read_pairs([votes, sampled], kind_field="category")
    found = [(pair.prompt.text, pair.first, pair.second, pair.kind, pair.answer) for pair in pairs.found.values()]
    assert found[:2] == [("p", "a", "b", "x", None), ("q", "a", "b", None, None)]
    assert [row[1:3] for row in found[2:]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.second_finished for pair in pairs.found.values()] == [True, True, False, True, True]
    assert (pairs.repeated, pairs.identical) == (2, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "p"},
        {"prompt": "p", "responses": ["a"]},
        {"prompt": "p", "responses": "ab"},
        {"prompt": "p", "responses": ["a", 3]},
        {"prompt": "", "responses": ["a", "b"]},
        {"prompt": "p", "responses": ["a", "b"], "finished": [True]},
        {"prompt": "p", "responses": ["a", "b"], "kind": 1.5},
    ],
)
def test_bad_records_are_named_or_dropped_and_counted(bad: dict[str, Any], tmp_path: Path) -> None:
    good = {"prompt": "p", "responses": ["a", "b"]}
    name = write(tmp_path / "sampled.jsonl", good, bad)
    with pytest.raises(DataError, match=r"sampled.jsonl:2: .*; mend or remove it, or give --drop-bad"):
        read_pairs([name])
    pairs = read_pairs([name], drop_bad=True)
    assert len(pairs.found) == 1 and len(pairs.bad) == 1


def test_gold_pairs_need_one_answer(tmp_path: Path) -> None:
    good = write(
        tmp_path / "gold.jsonl",
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "tie": True},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    )
    assert [pair.answer for pair in read_gold([good]).found.values()] == ["first", "tie"]
    for name, other in (("two", {"prompt": "p", "chosen": "b", "rejected": "a"}), ("none", None)):
        records = [{"prompt": "p", "chosen": "a", "rejected": "b"}, other] if other else []
        path = write(tmp_path / f"{name}.jsonl", *(records or [{"prompt": "p", "responses": ["a", "b"]}]))
        with pytest.raises(DataError, match=r"jsonl:1: a gold pair needs one answer"):
            read_gold([path])


def pairs_of(kind: str | None, count: int) -> list[Pair]:
    return [Pair(Prompt(f"{kind} {n}"), "a", "b", kind=kind) for n in range(count)]


def test_any_beginning_of_the_order_has_kinds_and_gold_in_proportion() -> None:
    pairs = pairs_of("x", 300) + pairs_of("y", 100) + pairs_of(None, 100)
    gold = [replace(pair, answer="first") for pair in pairs_of("gold", 80)]
    found = ordered(pairs, gold, seed=3, count=None, share=0.1)
    assert len(found) == 500 + 56 and len({pair.id for pair in found}) == 556
    for end in (50, 111, 278):
        kinds = Counter(pair.kind if pair.answer is None else "gold" for pair in found[:end])
        for kind, share in (("x", 300 / 556), ("y", 100 / 556), (None, 100 / 556), ("gold", 56 / 556)):
            assert abs(kinds[kind] - end * share) <= 2, (end, kind)
    assert [pair.id for pair in ordered(reversed(pairs), gold, 3, None, 0.1)] == [pair.id for pair in found]
    assert Counter(pair.kind for pair in ordered(pairs, [], 3, 50, 0.0)) == {"x": 30, "y": 10, None: 10}


def test_a_gold_pair_that_stands_among_the_others_is_gold(tmp_path: Path) -> None:
    (pair,) = pairs_of("x", 1)
    assert [each.answer for each in ordered([pair], [replace(pair, answer="tie")], 0, None, 0.5)] in ([], ["tie"])


def test_sides_are_even_and_depend_on_seed_and_pair_alone() -> None:
    pairs = pairs_of("x", 4000)
    left = sum(first_is_a(pair.id, 1) for pair in pairs)
    assert 1870 < left < 2130  # four standard deviations
    assert 1870 < sum(first_is_a(pair.id, 1) == first_is_a(pair.id, 2) for pair in pairs) < 2130
    swapped = replace(pairs[0], first=pairs[0].second, second=pairs[0].first)
    assert swapped.id == pairs[0].id and len({pair.id for pair in pairs}) == 4000


def test_a_ledger_reads_back_and_keeps_sides(tmp_path: Path) -> None:
    turns = Prompt((Message("system", "be kind"), Message("user", "hi")))
    pairs = [replace(PAIR, answer="first", origin="a.jsonl:1"), Pair(turns, "hello", "", kind="chat")]
    ledger = Ledger(tmp_path)
    made = ledger.add(pairs, seed=4)
    assert Ledger.open(tmp_path).entries == ledger.entries
    assert made[1].data()["prompt"] == "System: be kind\n\nUser: hi"
    swapped = replace(PAIR, first=PAIR.second, second=PAIR.first, answer="first")
    (again,) = Ledger.open(tmp_path).add([swapped], seed=5)
    assert again.first_is_a == made[0].first_is_a and again.pair.first == PAIR.first and again.pair.answer == "second"
    (tmp_path / "ledger.jsonl").write_text((tmp_path / "ledger.jsonl").read_text().replace("because", "be cause"))
    with pytest.raises(
        ArtifactError,
        match=r"ledger.jsonl: damaged .*; remove it, then push the same files again, with the same --gold",
    ):
        Ledger.open(tmp_path)
    assert directory_of("Demo, round 1!") == Path("labels/demo-round-1") and directory_of("ЖЖЖ") == Path("labels/жжж")


# What a run has sampled.


def test_a_run_s_samples_come_with_their_turns_and_ends(tmp_path: Path) -> None:
    chat = Prompt((Message("user", "hi"), Message("assistant", "ho"), Message("user", "why ?")))
    prompts = [chat, Prompt("plain")]
    rows: Sequence[dict[str, Any]] = [
        {"prompt": p.text, "before": "b", "after": f"a{n}", "before_finished": True, "after_finished": n == 0}
        | {name: column[n] for name, column in conversations(prompts).items()}
        for n, p in enumerate(prompts)
    ]
    write_samples(tmp_path / "evaluate/samples/side-by-side-000000.parquet", rows)
    found = list(pairs_of_run(tmp_path).found.values())
    assert [pair.prompt for pair in found] == prompts
    assert [(p.first, p.second, p.second_finished) for p in found] == [("b", "a0", True), ("b", "a1", False)]
    assert conversations([Prompt("plain")]) == {}
    with pytest.raises(ArtifactError, match="ppo/samples: no samples of two policies"):
        pairs_of_run(tmp_path, "ppo")
    old = [{name: value for name, value in rows[0].items() if not name.endswith("_finished")}]
    write_samples(tmp_path / "evaluate/samples/side-by-side-000000.parquet", old)
    with pytest.raises(ArtifactError, match="has no column before_finished; run the stage again"):
        pairs_of_run(tmp_path)


def test_held_out_samples_of_two_steps_are_pairs(tmp_path: Path) -> None:
    for step in (0, 10, 20):
        rows = [{"index": n, "prompt": f"p{n}", "response": f"r{n if n else step}", "finished": True} for n in range(3)]
        write_samples(tmp_path / f"ppo/samples/held-out-{step:06d}.parquet", rows)
    pairs = pairs_of_run(tmp_path)
    assert [(p.first, p.second) for p in pairs.found.values()] == [("r0", "r20")] and pairs.identical == 2


# The page, the server's address, secrets.


def test_the_page_is_well_formed_and_its_change_is_noticed() -> None:
    for dimensions in ((), ("helpfulness", "honesty")):
        config = page(dimensions)
        ElementTree.fromstring(config)
        assert missing_controls(config, dimensions) == []
    assert missing_controls(page(), ("honesty",)) == ["honesty_a", "honesty_b"]
    assert missing_controls(page().replace('value="tie"', 'value="equal"'), ()) == ["preference"]
    assert missing_controls(page().replace("$response_a", "$response_b"), ()) == ["response_a"]
    assert missing_controls("<View", ()) == ["preference"]
    for bad in ("Honesty", "response", "a b", "x" * 41):
        with pytest.raises(ConfigError, match="--rate"):
            check_dimensions([bad])


def test_addresses_hold_no_secrets_and_tokens_stay_out_of_errors() -> None:
    assert checked_url("https://labels.example.com/studio/") == "https://labels.example.com/studio"
    for bad in ("labels.example.com", "ftp://x", "http://", "http://me:secret@x"):
        with pytest.raises(ConfigError, match="--url") as raised:
            checked_url(bad)
        assert "secret" not in str(raised.value) or bad == "labels"
    assert is_loopback("http://127.0.0.1:8080") and is_loopback("http://[::1]:1") and not is_loopback("http://10.0.0.1")
    with LabelStudio("http://127.0.0.1:9", "a secret", patience=0) as server, pytest.raises(LabellingError) as raised:
        server.user()
    assert "no answer" in str(raised.value) and "secret" not in str(raised.value)


def test_a_server_s_secrets_are_for_its_owner_alone(tmp_path: Path) -> None:
    owner = owner_of(tmp_path / "server")
    assert owner == owner_of(tmp_path / "server") and len(owner.token) == 40
    for name in ("password", "token"):
        assert stat.S_IMODE((tmp_path / "server" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "server").stat().st_mode) == 0o700
    own = environment(tmp_path / "server", owner, {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "HOME": "/root"})
    assert "AWS_SECRET_ACCESS_KEY" not in own and own["COLLECT_ANALYTICS"] == "false" and own["HOME"] != "/root"
    assert kept_secret(tmp_path / "server" / "secret-key", "other") == own["SECRET_KEY"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["push", "pairs.jsonl", "--project", "ab"], "--project 'ab': a title has 3 to 50 characters"),
        (["push", "pairs.jsonl", "--project", "x" * 51], "a title has 3 to 50 characters"),
        (["push", "nothing.jsonl", "--project", "abc"], "nothing.jsonl: no such file"),
        (["push", "pairs.jsonl", "--project", "abc", "--stage", "ppo"], "--stage ppo: is for a run"),
        (["push", "pairs.jsonl", "--project", "abc", "--rate", "A B"], "--rate A B: not a name to rate by"),
        (["push", "pairs.jsonl", "--project", "abc", "--instructions", "none.txt"], "--instructions none.txt: cannot"),
        (["push", "pairs.jsonl", "--project", "abc"], "LABEL_STUDIO_API_KEY is not set"),
        (["pull", "--project", "abc"], "labels/abc: no labelling project (there: none)"),
        (["watch", "--project", "abc"], "labels/abc: no labelling project"),
        (["watch", "--project", "abc", "--host", "0.0.0.0"], "--host 0.0.0.0: is no address that others can call"),
        (["report", "--project", "abc"], "labels/abc: no labelling project"),
    ],
)
def test_wrong_input_ends_before_anything_is_written(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    write(tmp_path / "pairs.jsonl", {"prompt": "p", "responses": ["a", "b"]})
    with pytest.raises((ConfigError, DataError, ArtifactError)) as raised:
        app(["label", *arguments], standalone_mode=False)
    assert problem in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"] and list(read_lines(tmp_path / "none")) == []


# Who else writes there.


def test_a_command_waits_for_another_that_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = Ledger(tmp_path).held()
    holder.__enter__()
    with pytest.raises(Busy, match="another rlhf label command is at work here; wait"), Ledger(tmp_path).held(0.0):
        pass
    release = threading.Timer(0.5, lambda: holder.__exit__(None, None, None))
    release.start()
    with Ledger(tmp_path).held(30.0):
        release.join()
    assert capsys.readouterr().err.count("this one waits for it") == 1


def test_a_watch_beside_another_command_keeps_its_hook(tmp_path: Path) -> None:
    class Pulls:
        ledger, pulled = Ledger(tmp_path), 0

        def pull(self, whole: bool) -> Any:
            self.pulled += 1
            stop.set()

    stop, said, puller = threading.Event(), list[str](), Pulls()
    with Listener("127.0.0.1", 0, None) as listener:
        watch = Watch(puller, listener, "http://127.0.0.1:1", 60.0)  # type: ignore[arg-type]
        watch.registered = True
        watch.end = lambda warn: None  # type: ignore[method-assign]
        with Ledger(tmp_path).held():
            thread = threading.Thread(target=watch.run, args=(lambda pulled: None, said.append, stop))
            thread.start()
            time.sleep(1.0)
            assert (said, watch.registered, puller.pulled) == ([], True, 0)
        thread.join(20)
    assert (said, watch.registered, puller.pulled) == ([], True, 1)


# What is on its way.


class Slow:
    """A server in memory, whose answers get lost and which does the work all the same, later."""

    url, patience = "http://127.0.0.1:1", 60.0

    def __init__(self, late: float) -> None:
        self.late = late
        self.held: dict[int, dict[str, Any]] = {}
        self.votes: set[int] = set()  # tasks annotated since they were listed
        self.imports = 0

    def tasks(self, project: int, fields: str) -> Any:
        yield len(self.held), [{**task, "annotations_ids": []} for task in list(self.held.values())]

    def annotated(self, project: int, numbers: Sequence[int]) -> Any:
        return [{"id": number, "annotations": [{}] * (number in self.votes)} for number in numbers]

    def import_tasks(self, project: int, data: Sequence[dict[str, str]]) -> None:
        self.imports += 1
        threading.Timer(self.late, self.take, [data]).start()
        raise Away("504 Gateway Timeout")

    def take(self, data: Sequence[dict[str, str]]) -> None:
        for each in data:
            number = len(self.held) + 1
            self.held[number] = {"id": number, "data": each}

    def delete_task(self, number: int) -> None:
        del self.held[number]


def test_a_batch_that_comes_long_after_its_answer_was_lost_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(pushing, "ANSWER_SECONDS", 20.0)
    ledger, server, project = Ledger(tmp_path), Slow(1.5), Project("http://127.0.0.1:1", 1, "abc", NOW, 0)
    entries = ledger.add(pairs_of("x", 4), 0)
    pushed = pushing.push(server, ledger, project, entries)  # type: ignore[arg-type]
    assert (pushed.pushed, server.imports, len(server.held), pushed.removed) == (4, 1, 4, 0)
    assert not (tmp_path / "in-flight.json").exists()


def test_of_two_tasks_that_with_a_vote_of_just_now_stays(tmp_path: Path) -> None:
    ledger, server, project = Ledger(tmp_path), Slow(0.0), Project("http://127.0.0.1:1", 1, "abc", NOW, 0)
    entries = ledger.add(pairs_of("x", 2), 0)
    server.take([entry.data() for entry in [*entries, *entries]])
    server.votes = {3}  # the double of the first
    assert pushing.push(server, ledger, project, entries).removed == 2  # type: ignore[arg-type]
    assert sorted(server.held) == [2, 3]


# Who tells us of votes.


def test_a_listener_answers_at_once_who_knows_the_secret() -> None:
    with Listener("127.0.0.1", 0, None) as listener, httpx.Client(trust_env=False, timeout=5) as client:
        url = f"http://127.0.0.1:{listener.port}"
        for path, headers in ((PATH, {}), (PATH, {HEADER: "guessed"}), ("/", {HEADER: listener.secret})):
            assert client.post(url + path, headers=headers, json={"action": "x"}).status_code == 403
        assert client.post(url + PATH, headers={HEADER: "é".encode()}).status_code == 403
        assert client.get(url + PATH, headers={HEADER: listener.secret}).status_code == 501
        assert not listener.told.is_set() and listener.refused == 4
        assert client.post(url + PATH, headers={HEADER: listener.secret}, content=b"no JSON").status_code == 204
        assert listener.told.wait(5) and len(listener.secret) > 30


def test_a_listener_is_open_to_others_with_a_token_alone() -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "node-7"):
        with pytest.raises(ConfigError, match=f"--host {host}: is open to others; set RLHF_LABEL_TOKEN"):
            Listener(host, 0, None)
    with Listener("0.0.0.0", 0, "mine") as listener:
        assert listener.secret == "mine"
        with pytest.raises(ConfigError, match="cannot listen at 127.0.0.1"):
            Listener("127.0.0.1", listener.port, None)
