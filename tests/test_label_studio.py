"""Labelling against a real Label Studio: pairs there, votes back, and whatever may happen in between.

`tests/label_studio_server.py` makes the server. Everything else of `data/labelling` has tests of its own.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any
from unittest import mock

import httpx
import pytest
from label_studio_server import (
    Between,
    Person,
    Studio,
    chosen,
    environment,
    free_port,
    running,
    tasks_of,
    template,
)

from data.labelling.client import Refused, official
from data.labelling.ledger import Entry, Ledger
from data.locations import files_of
from data.reading import Reading
from launch.cli import app
from launch.label_studio import is_free
from rlhf.config import SourceConfig
from rlhf.types import Comparison

pytestmark = pytest.mark.services
Records = list[dict[str, Any]]

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


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with running(tmp_path_factory.mktemp("studio")) as started:
        yield started


def label(studio: Studio, folder: Path, *arguments: str) -> str:
    """What `rlhf label` prints; in this process, for loading it takes seconds."""
    with chdir(folder), redirect_stdout(io.StringIO()) as said, mock.patch.dict(os.environ, environment(studio)):
        app(["label", *arguments], standalone_mode=False)
    return said.getvalue()


def begun(studio: Studio, folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """`rlhf label`, under way."""
    command = [sys.executable, "-P", "-m", "launch.cli", "label", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(studio, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )


def hear_interrupts() -> None:
    """Whoever runs the tests in the background has had Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out + err


def wait_for(look: Callable[[], Any], seconds: float = 60) -> Any:
    """What a look gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
    return found


def write_pairs(path: Path, count: int, gold: int = 0) -> None:
    """Different pairs without votes, of two kinds of prompts; and some with an answer, in gold.jsonl beside."""
    records = [
        {"prompt": f"question {n} ?", "responses": [f"answer {n}", f"another {n}"], "kind": "ab"[n % 2]}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    answers = [{"prompt": f"gold {n} ?", "chosen": f"right {n}", "rejected": f"wrong {n}"} for n in range(gold)]
    path.with_name("gold.jsonl").write_text("".join(json.dumps(record) + "\n" for record in answers))


def project_of(directory: Path) -> int:
    return int(json.loads((directory / "project.json").read_text())["id"])


def lines(path: Path) -> Records:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pushed(studio: Studio, folder: Path, title: str, count: int, *options: str) -> tuple[int, Ledger, dict[str, int]]:
    """A project with pairs: its number, its ledger, and the task of each pair."""
    write_pairs(folder / "pairs.jsonl", count, gold=3)
    said = json.loads(label(studio, folder, "push", "pairs.jsonl", "--project", title, "--json", *options))
    assert said["pushed"] == count + said["gold"]
    ledger = Ledger.open(folder / said["directory"])
    tasks = {pair: numbers[0] for pair, numbers in tasks_of(studio, said["project"]).items()}
    return said["project"], ledger, tasks


def test_people_see_texts_and_nothing_else(studio: Studio, tmp_path: Path) -> None:
    number, ledger, tasks = pushed(
        studio, tmp_path, "what is seen", 40, "--gold", "gold.jsonl", "--overlap", "2", "--rate", "honesty"
    )
    with studio.owner as owner:
        project = owner.project(number)
        shown = [task for _, page in owner.tasks(number, "data,meta,overlap") for task in page]
    assert project["maximum_annotations"] == 2 and 'name="honesty_b"' in project["label_config"]
    assert {tuple(task["data"]) for task in shown} == {("prompt", "response_a", "response_b", "pair_id")}
    assert {task["overlap"] for task in shown} == {2} and not any(task["meta"] for task in shown)
    sides = Counter()
    for task in shown:
        entry = ledger.entries[task["data"]["pair_id"]]
        assert task["data"] == entry.data()
        sides[entry.first_is_a] += 1
    assert len(shown) == len(tasks) == 43 and min(sides.values()) > 10
    gold = [ledger.entries[task["data"]["pair_id"]].pair.answer for task in shown]
    assert gold.count("first") == 3 and "first" in gold[:25]  # spread, not behind all others


def test_push_again_adds_what_is_new(studio: Studio, tmp_path: Path) -> None:
    number, _, _ = pushed(studio, tmp_path, "again", 20)
    write_pairs(tmp_path / "pairs.jsonl", 30)
    said = json.loads(label(studio, tmp_path, "push", "pairs.jsonl", "--project", "again", "--json"))
    assert (said["pushed"], said["there"], said["project"]) == (10, 20, number)
    assert sorted(map(len, tasks_of(studio, number).values())) == [1] * 30


def test_a_lost_ledger_is_made_again_from_the_server_s_sides(studio: Studio, tmp_path: Path) -> None:
    _, ledger, _ = pushed(studio, tmp_path, "lost ledger", 20)
    (ledger.directory / "ledger.jsonl").unlink()
    (ledger.directory / "project.json").unlink()
    said = label(studio, tmp_path, "push", "pairs.jsonl", "--project", "lost ledger", "--seed", "5")
    assert "pairs stand there the other way round" in said and "0 pairs pushed, 20 were there" in said
    assert Ledger.open(ledger.directory).entries == ledger.entries


def test_a_push_that_is_killed_and_repeated_gives_each_pair_once(studio: Studio, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 600)
    push = ("push", "pairs.jsonl", "--project", "killed", "--batch", "40")
    arrived: list[str] = []
    processes: list[subprocess.Popen[str]] = []

    def kill(method: str, path: str) -> None:
        if method == "POST" and "/import" in path:
            arrived.append(path)
            if len(arrived) in (2, 6, 13):
                processes[-1].send_signal(signal.SIGKILL)  # it has sent the batch, and waits for an answer

    with Between(studio.url, kill) as between:
        for _ in range(3):
            processes.append(begun(studio, tmp_path, *push, "--url", between.url))
            code, said = ended(processes[-1])
            assert code == -signal.SIGKILL, said
    label(studio, tmp_path, *push)
    numbers = tasks_of(studio, project_of(tmp_path / "labels/killed"))
    assert len(numbers) == 600 and set(map(len, numbers.values())) == {1}


def test_a_push_whose_server_is_killed_goes_on_when_it_is_back(studio: Studio, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", 800)
    arrived: list[str] = []

    def kill(method: str, path: str) -> None:
        if method == "POST" and "/import" in path:
            arrived.append(path)
            if len(arrived) == 3:
                Timer(0.02, studio.kill).start()  # while it works on the batch

    with Between(studio.url, kill) as between:
        push = ("push", "pairs.jsonl", "--project", "server killed", "--batch", "100", "--url", between.url)
        process = begun(studio, tmp_path, *push)
        wait_for(lambda: studio.server.process is not None and studio.server.process.poll() is not None)
        studio.restart()
        code, said = ended(process, 240)  # two minutes for a batch that will not come
    assert code == 0 and "asking again" in said, said
    numbers = tasks_of(studio, project_of(tmp_path / "labels/server-killed"))
    assert len(numbers) == 800 and set(map(len, numbers.values())) == {1}


def test_answers_that_are_lost_double_nothing(studio: Studio, tmp_path: Path) -> None:
    """The network goes behind a batch that has arrived, and before one that has not."""
    write_pairs(tmp_path / "pairs.jsonl", 200)
    arrived: list[str] = []

    def lose(method: str, path: str) -> str | None:
        if method == "POST" and "/import" in path:
            arrived.append(path)
            return {2: "answer lost", 4: "lost"}.get(len(arrived))
        return "lost" if method == "GET" and len(arrived) == 3 and path.startswith("/api/tasks") else None

    with Between(studio.url, lose) as between, mock.patch("data.labelling.pushing.ANSWER_SECONDS", 10.0):
        label(studio, tmp_path, "push", "pairs.jsonl", "--project", "lost", "--batch", "40", "--url", between.url)
    numbers = tasks_of(studio, project_of(tmp_path / "labels/lost"))
    assert len(numbers) == 200 and set(map(len, numbers.values())) == {1}


def test_what_came_twice_is_removed_unless_it_is_annotated(studio: Studio, tmp_path: Path) -> None:
    number, ledger, tasks = pushed(studio, tmp_path, "twice", 6)
    first, second, *_ = tasks
    with studio.owner as owner:  # as a push from another machine at the same time would
        numbers = owner.import_tasks(number, [ledger.entries[pair].data() for pair in (first, second)])
    again = {pair: max(numbers) for pair, numbers in tasks_of(studio, number).items() if len(numbers) == 2}
    assert numbers == [again[first], again[second]]
    studio.person("ann").vote(again[second], "A")
    said = label(studio, tmp_path, "push", "pairs.jsonl", "--project", "twice")
    assert "2 tasks that had come twice removed" in said
    left = tasks_of(studio, number)
    assert left[first] == [tasks[first]] and left[second] == [again[second]] and len(left) == 6
    label(studio, tmp_path, "pull", "--project", "twice")
    assert [vote["pair"] for vote in lines(ledger.directory / "votes.jsonl")] == [second]


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


def test_votes_appear_as_they_are_cast(studio: Studio, tmp_path: Path) -> None:
    """By real webhooks; through a server that restarts, and a watch that is killed and comes back."""
    number, ledger, tasks = pushed(studio, tmp_path, "watched", 12)
    pairs, ann = list(tasks), studio.person("ann")
    path = ledger.directory / "votes.jsonl"

    def votes() -> int:
        return len(lines(path)) if path.is_file() else 0

    def cast(pair: str, wanted: int, seconds: float) -> float:
        ann.vote(tasks[pair], "A")
        started = time.monotonic()
        wait_for(lambda: votes() == wanted, seconds)
        return time.monotonic() - started

    ann.vote(tasks[pairs[0]], "A")
    watch = ("watch", "--project", "watched")
    with watching(studio, tmp_path, *watch) as process:  # what came before is there, though the next whole pull is far
        wait_for(lambda: votes() == 1)
        with studio.owner as owner:
            (hook,) = wait_for(lambda: owner.webhooks(number))
        assert hook["url"].startswith("http://127.0.0.1:") and len(hook["headers"]["X-RLHF-Label-Token"]) > 30
        for wrong in ({}, {"X-RLHF-Label-Token": "guessed"}):
            assert httpx.post(hook["url"], headers=wrong, trust_env=False).status_code == 403
        for wanted, pair in enumerate(pairs[1:4], start=2):
            assert cast(pair, wanted, 20) < 20
        studio.kill()
        time.sleep(1)
        studio.restart()
        cast(pairs[4], 5, 60)
        process.send_signal(signal.SIGKILL)
    ann.vote(tasks[pairs[5]], "A")  # nobody listens: the hook is lost, the vote is not
    with watching(studio, tmp_path, *watch) as process:
        wait_for(lambda: votes() == 6)
        cast(pairs[6], 7, 20)
        label(studio, tmp_path, "push", "pairs.jsonl", "--project", "watched")  # beside a watch
        process.send_signal(signal.SIGINT)
        code, said = ended(process)
    assert code == 0 and "Traceback" not in said, said
    with studio.owner as owner:
        assert owner.webhooks(number) == []


@contextmanager
def watching(studio: Studio, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = begun(studio, folder, *arguments, PYTHONUNBUFFERED="1")
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        with suppress(ValueError):  # its ends are read already
            process.communicate(timeout=30)


def test_the_report_finds_who_votes_at_random(studio: Studio, tmp_path: Path) -> None:
    """The answers are right to four in five; another says what stands on the left, and one votes against."""
    _, ledger, tasks = pushed(studio, tmp_path, "report", 30, "--gold", "gold.jsonl", "--gold-share", "0.1")
    people = [studio.person(name) for name in ("ann", "bob", "left", "against")]
    for number, (pair, task) in enumerate(tasks.items()):
        entry = ledger.entries[pair]
        right = "A" if entry.first_is_a else "B"
        wrong = {"A": "B", "B": "A"}[right]
        for person, choice in zip(people, (right, right if number % 5 else "tie", "A", wrong), strict=True):
            person.vote(task, choice, lead_time=1.0 if person.name == "left" else 9.0)
    label(studio, tmp_path, "pull", "--project", "report")
    found = json.loads(label(studio, tmp_path, "report", "--project", "report", "--json"))
    assert found["pairs_with_votes"] == 33 and found["classes"]["valid"] == 4 * 33 - 7
    by_name = {person["name"].partition("@")[0]: person for person in found["annotators"]}
    assert by_name["ann"]["gold"]["share"] == 1.0 and by_name["against"]["gold"]["share"] == 0.0
    assert by_name["left"]["first"]["share"] == 1.0 and by_name["bob"]["tie"]["share"] == pytest.approx(7 / 33)
    about = {line.partition("@")[0] for line in found["attention"] if "@" in line}
    assert about == {"left", "against"}
    assert any("left@" in line and "takes 1.0 s for a vote" in line for line in found["attention"])
    page = Path(tmp_path / found["page"]).read_text()
    assert "data:image/png;base64," in page and "src=http" not in page and "<script" not in page
    assert "needs attention:" in label(studio, tmp_path, "report", "--project", "report")


def test_the_sdk_by_itself_reads_what_was_pushed(studio: Studio, tmp_path: Path) -> None:
    """With its own connections, token and export, as a program of somebody else would use it."""
    number, ledger, tasks = pushed(studio, tmp_path, "by the sdk", 10)
    studio.person("ann").vote(next(iter(tasks.values())), "tie")
    make, _ = official()
    with httpx.Client(trust_env=False, timeout=60) as own:
        client = make(base_url=studio.url, api_key=studio.server.owner.token, httpx_client=own)
        read = client.projects.exports.as_json(number)
    assert all(task["data"] == ledger.entries[task["data"]["pair_id"]].data() for task in read)
    assert sorted(len(task["annotations"]) for task in read) == [0] * 9 + [1]


def test_up_starts_a_server_and_stops_it(tmp_path: Path) -> None:
    folder, port = tmp_path / "own", free_port()
    shutil.copytree(template(), folder)
    command = [sys.executable, "-P", "-m", "launch.cli", "label", "up", "--directory", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=hear_interrupts
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(4)]
    assert f"Label Studio 1.23.2 at http://127.0.0.1:{port}" in said[0] and str(folder / "token") in said[2]
    elsewhere = [str(tmp_path / "other") if word == str(folder) else word for word in command]
    for words, problem in (
        (command, f"{folder}: in use by another rlhf process; wait or give another --directory"),
        (elsewhere, f"--port {port}: is in use; give another, or stop what listens there"),
    ):
        again = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert (again.returncode, again.stderr) == (2, f"error: {problem}\n")
    process.send_signal(signal.SIGINT)
    code, rest = ended(process)
    assert code == 0 and "stopping" in rest and is_free(port), rest
    assert "Traceback" not in rest
