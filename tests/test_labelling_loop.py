"""One round of labelling, from a run's responses to a better reward model: a real server, a real browser, people.

They know the hidden utility of the embedded task, each right so often (tests/hidden.py). Without a server, on several
seeds: PYTHONPATH=. python tests/hidden.py
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hidden import OVERLAP, PAIRS, PEOPLE, RECIPE, Two, begin, reward_of, said, says
from label_commands import (
    a_studio,  # noqa: F401  # the fixture `studio`
    label,
    lines,
)
from label_studio_page import Page, opened
from label_studio_server import Studio, tasks_of

from data.labelling.ledger import Entry, Ledger

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]
SEED = 1
BY_HAND = 12  # tasks that ann does on the page; of these she passes one and calls one a tie, whatever is shown
SIDES = {"first": "A", "second": "B", "tie": "tie"}
KEYS = {"A": "1", "B": "2", "tie": "3"}

Votes = dict[tuple[str, str], str]  # of a pair by its id and a person by name: A, B, tie, or skipped


def shown(entry: Entry) -> Two:
    """What somebody sees of a pair: the first response is A."""
    return Two(entry.pair.prompt, entry.responses)


def vote_on_the_page(studio: Studio, folder: Path, project: int, ledger: Ledger, draw: random.Random) -> Votes:
    """Ann answers what the page asks, by clicks and by keys in turn."""
    studio.person("ann")
    entries = {entry.data()["prompt"]: entry for entry in ledger.entries.values()}
    votes: Votes = {}
    with opened(folder / "browser") as browser:
        page, prompt = Page(browser, studio.url, project), ""
        for number in range(BY_HAND):
            prompt = page.next(prompt)
            entry = entries[prompt]
            answer = {3: "tie", 7: "skipped"}.get(number) or SIDES[says(shown(entry).gap, PEOPLE["ann"], draw)]
            if answer == "skipped":
                page.press("skip-task")
            else:
                if number % 2:
                    page.key(KEYS[answer])
                    page.wait(lambda chosen=answer: page.is_chosen(chosen))
                else:
                    page.choose(answer)
                page.submit()
            votes[entry.pair.id, "ann"] = answer
        page.next(prompt)  # the last answer has arrived
    return votes


def vote_by_program(studio: Studio, project: int, ledger: Ledger, given: Votes, draw: random.Random) -> Votes:
    """Everybody answers through the interface, until each pair has its number of people."""
    votes: Votes = {}
    for pair, (task,) in tasks_of(studio, project).items():
        asked = [name for name in PEOPLE if (pair, name) in given]
        others = draw.sample([name for name in PEOPLE if name not in asked], OVERLAP - len(asked))
        for name in others:
            answer = SIDES[says(shown(ledger.entries[pair]).gap, PEOPLE[name], draw)]
            studio.person(name).vote(task, answer)
            votes[pair, name] = answer
    return votes


def test_a_round_of_labelling_teaches_the_reward_model(studio: Studio, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    begin(tmp_path, SEED)
    before = reward_of(tmp_path, SEED, "votes.jsonl")
    sample = ("label", "sample", "labelling", "--training", "--prompts", str(PAIRS), "--seed", str(SEED))
    said(tmp_path, *sample, "--output", "responses.jsonl")

    title = ("--project", "round 1")
    pushed = json.loads(label(studio, tmp_path, "push", "responses.jsonl", *title, "--overlap", str(OVERLAP), "--json"))
    assert pushed["pushed"] >= 0.9 * PAIRS  # one or the other prompt got the same response twice
    ledger = Ledger.open(tmp_path / pushed["directory"])
    votes = vote_on_the_page(studio, tmp_path, pushed["project"], ledger, draw)
    votes |= vote_by_program(studio, pushed["project"], ledger, votes, draw)
    pulled = json.loads(label(studio, tmp_path, "pull", *title, "--json"))

    said_by_all = Counter(votes.values())
    assert len(votes) == OVERLAP * pushed["pushed"] == pulled["annotations"]
    classes = {"valid": said_by_all["A"] + said_by_all["B"], "tie": said_by_all["tie"], "skipped": 1}
    assert {name: pulled[name] for name in (*classes, "malformed", "duplicate", "edited")} == {
        **classes,
        "malformed": 0,
        "duplicate": 0,
        "edited": 0,
    }
    numbers = {studio.person(name).number: name for name in PEOPLE}
    path = ledger.directory / "votes.jsonl"
    back = {(vote["pair"], numbers[vote["annotator"]]): side_of(vote) for vote in lines(path)}
    assert back == {key: answer for key, answer in votes.items() if answer != "skipped"}

    file = str(path.relative_to(tmp_path))
    verdict = json.loads(said(tmp_path, "data", "check", file, "--recipe", str(RECIPE), "--json"))
    doubts = {finding["kind"] for finding in verdict["findings"] if finding["severity"] != "info"}
    assert not doubts & {"malformed", "contradiction", "duplicate"}  # they differ with each other, not with themselves
    together = json.loads(said(tmp_path, "data", "consensus", file, "--output", "consensus.jsonl", "--json"))
    found = {numbers[one["annotator"]]: one["finding"] for one in together["annotators"]}
    assert found["mal"] == "against" and found["ann"] == found["bob"] == "reliable"

    after = reward_of(tmp_path, SEED, "consensus.jsonl")
    print(f"\n{before['votes']} held-out pairs: {before['accuracy']:.3f}, then {after['accuracy']:.3f}")
    assert after["votes"] == before["votes"] > 1000
    assert after["accuracy"] >= before["accuracy"] + 0.1
    assert after["accuracy_ci"][0] > before["accuracy_ci"][1]


def side_of(vote: dict[str, object]) -> str:
    """Which answer on the page a pulled vote was."""
    if vote.get("tie"):
        return "tie"
    return "A" if vote["chosen_shown_first"] else "B"
