"""Annotations of a real Label Studio, each in one class: votes, and what is none."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from label_commands import (
    a_studio,  # noqa: F401  # the fixture `studio`
    begun,
    ended,
    label,
    lines,
    pushed,
    wait_for,
)
from label_studio_server import Between, Person, Studio, chosen

from data.labelling.client import Refused
from data.labelling.ledger import Entry
from data.locations import files_of
from data.reading import Reading
from rlhf.config import SourceConfig
from rlhf.types import Comparison

pytestmark = pytest.mark.services
UNKNOWN = {"from_name": "mood", "to_name": "prompt", "type": "choices", "value": {"choices": ["good"]}}
MALFORMED: list[Any] = [  # whatever the server was seen to take, though its page could not send it
    [chosen("C")],
    [{**chosen("A"), "value": {"choices": ["A", "B"]}}],
    [{**chosen("A"), "value": {"choices": "A"}}],
    [{name: value for name, value in chosen("A").items() if name != "value"}],
    [chosen("A"), chosen("B")],
    [chosen("A"), UNKNOWN],
    [chosen("A"), {"from_name": "honesty_a", "to_name": "response_a", "type": "rating", "value": {"rating": 9}}],
    [{"from_name": "honesty_a", "to_name": "response_a", "type": "rating", "value": {"rating": 4}}],
    [chosen("A"), {"from_name": "reason", "to_name": "prompt", "type": "textarea", "value": {"text": 7}}],
    [],
]


def test_every_annotation_is_in_one_class(studio: Studio, tmp_path: Path) -> None:
    number, ledger, tasks = pushed(studio, tmp_path, "classes", 30, "--gold", "gold.jsonl", "--rate", "honesty")
    gold = [pair for pair, entry in ledger.entries.items() if entry.pair.answer]
    plain = iter(pair for pair in tasks if pair not in gold)
    ann, bob = studio.person("ann"), studio.person("bob")
    stars = {"from_name": "honesty_b", "to_name": "response_b", "type": "rating", "value": {"rating": 4}}
    expected: list[tuple[str, str, Comparison]] = []

    def voted(pair: str, person: Person, choice: str, reason: str = "", **fields: Any) -> None:
        person.vote(tasks[pair], choice, reason, **fields)
        expected.append((pair, person.number, as_voted(ledger.entries[pair], person, choice)))

    one = next(plain)
    ann.vote(tasks[one], "A")  # and then she thinks again
    voted(one, ann, "B", "B names its source")
    voted(one, bob, "A")
    voted(next(plain), ann, "tie")
    voted(gold[0], bob, "A")
    rated = next(plain)
    ann.annotate(tasks[rated], [chosen("B"), stars])
    expected.append((rated, ann.number, as_voted(ledger.entries[rated], ann, "B")))
    ann.vote(tasks[next(plain)], "A", was_cancelled=True)  # a skip that carries an answer
    for bad in MALFORMED:
        with suppress(Refused):  # 500 for what has no value, and keeps it all the same
            ann.annotate(tasks[next(plain)], bad)
    bob.change(ann.vote(tasks[next(plain)], "A"), [chosen("B")])
    bob.vote(tasks[next(plain)], "A", completed_by=int(ann.number))  # in her name
    changed = next(plain)
    ann.vote(tasks[changed], "A")
    foreign = {"data": {"prompt": "p", "response_a": "a", "response_b": "b", "pair_id": "unknown"}, "project": number}
    with studio.owner as owner:
        data = ledger.entries[changed].data() | {"response_a": "something else"}
        owner.send("PATCH", f"/api/tasks/{tasks[changed]}/", {"data": data})
        ann.vote(owner.send("POST", "/api/tasks/", foreign)["id"], "A")
    counts = json.loads(label(studio, tmp_path, "pull", "--project", "classes", "--json"))
    classes = {"valid": 4, "tie": 1, "skipped": 1, "malformed": len(MALFORMED) + 2, "duplicate": 1, "edited": 2}
    assert {name: counts[name] for name in (*classes, "deleted")} == {**classes, "deleted": 0}
    assert counts["annotations"] == sum(classes.values()) and counts["votes_on_gold"] == 1
    votes, calibration = (lines(ledger.directory / name) for name in ("votes.jsonl", "calibration.jsonl"))
    assert {(vote["pair"], vote["annotator"]) for vote in [*votes, *calibration]} == {(p, a) for p, a, _ in expected}
    assert calibration[0]["pair"] == gold[0] and votes[0].get("reason") == "B names its source"
    (ratings,) = [vote["ratings"] for vote in votes if "ratings" in vote]
    assert ratings == {"honesty": {"chosen": 4}}
    read = comparisons_of(ledger.directory / "votes.jsonl")
    assert all(vote.time is not None and abs(vote.time - time.time()) < 300 for vote in read)
    wanted = [vote for pair, _, vote in expected if pair not in gold]
    assert sorted(map(str, (replace(vote, time=None) for vote in read))) == sorted(map(str, wanted))
    why = {reject["class"]: reject["why"] for reject in lines(ledger.directory / "rejects.jsonl")}
    assert why["edited"] == f"last written by {bob.number}" and "is newer" in why["duplicate"]
    reasons = {r["why"] for r in lines(ledger.directory / "rejects.jsonl") if r["class"] == "malformed"}
    assert len(reasons) == len(MALFORMED) + 2 and "an empty result" in reasons


def as_voted(entry: Entry, person: Person, choice: str) -> Comparison:
    """What a vote must come back as, from the texts that the voter saw."""
    a, b = entry.responses
    better, worse = (b, a) if choice == "B" else (a, b)
    return Comparison(
        entry.pair.prompt,
        better,
        worse,
        tie=choice == "tie",
        annotator=person.number,
        chosen_shown_first=choice != "B",
        seconds=4.5,
        kind=entry.pair.kind,
    )


def comparisons_of(path: Path) -> list[Comparison]:
    """As a recipe reads it."""
    reading = Reading(SourceConfig(path=str(path)), files_of(str(path), None), "comparisons")
    return [example for example in reading if isinstance(example, Comparison)]


def test_only_what_has_changed_is_fetched_again(studio: Studio, tmp_path: Path) -> None:
    _, ledger, tasks = pushed(studio, tmp_path, "changes", 12)
    pairs, ann, bob = list(tasks), studio.person("ann"), studio.person("bob")

    def pull() -> tuple[int, Counter[str], dict[str, tuple[str, bool]]]:
        counts = json.loads(label(studio, tmp_path, "pull", "--project", "changes", "--json"))
        classes = Counter({name: counts[name] for name in ("valid", "edited", "deleted", "skipped", "duplicate")})
        votes = lines(ledger.directory / "votes.jsonl")
        return (
            counts["changed"],
            +classes,
            {vote["pair"]: (vote["annotator"], vote["chosen_shown_first"]) for vote in votes},
        )

    made = [ann.vote(tasks[pair], "A") for pair in pairs[:5]]
    assert pull() == (5, Counter(valid=5), {pair: (ann.number, True) for pair in pairs[:5]})
    assert pull() == (0, Counter(valid=5), {pair: (ann.number, True) for pair in pairs[:5]})
    bob.change(made[0], [chosen("B")])  # her own vote, pulled before that, counts
    ann.change(made[1], [chosen("B")])
    bob.withdraw(made[2])
    with studio.owner as owner:
        owner.delete_task(tasks[pairs[3]])
    ann.annotate(tasks[pairs[4]], [], was_cancelled=True)
    ann.vote(tasks[pairs[5]], "B")
    expected = {pairs[0]: (ann.number, True), pairs[1]: (ann.number, False), pairs[5]: (ann.number, False)}
    classes = Counter(valid=3, deleted=2, skipped=1, duplicate=1)  # each annotation once, bob's edit among the rejects
    assert pull() == (6, classes, expected)
    assert pull() == (0, classes, expected)
    edited = [each["pair"] for each in lines(ledger.directory / "rejects.jsonl") if each["class"] == "edited"]
    assert edited == [pairs[0]]
    gone = [reject for reject in lines(ledger.directory / "rejects.jsonl") if reject["class"] == "deleted"]
    assert {reject["pair"] for reject in gone} == {pairs[2], pairs[3]}
    assert all(reject["record"]["result"] == [chosen("A")] for reject in gone)  # nothing is lost, only not a vote


def test_a_pull_whose_server_is_killed_goes_on_when_it_is_back(studio: Studio, tmp_path: Path) -> None:
    number, ledger, tasks = pushed(studio, tmp_path, "killed pull", 1000)
    ann = studio.person("ann")
    with studio.owner as owner:
        annotated = [
            {"data": entry.data(), "annotations": [{"result": [chosen("A")], "completed_by": int(ann.number)}]}
            for entry in ledger.entries.values()
        ]
        owner.send("POST", f"/api/projects/{number}/import?commit_to_project=true", annotated)
    exported: list[str] = []

    def kill(method: str, path: str) -> None:
        if "/export" in path:
            exported.append(path)
            if len(exported) == 2:
                Timer(0.05, studio.kill).start()

    with Between(studio.url, kill) as between:
        process = begun(studio, tmp_path, "pull", "--project", "killed pull", "--url", between.url)
        wait_for(lambda: studio.server.process is not None and studio.server.process.poll() is not None)
        studio.restart()
        code, said = ended(process)
    assert code == 0 and "asking again" in said, said
    assert len(exported) >= 4
    assert len(lines(ledger.directory / "votes.jsonl")) == 1000
