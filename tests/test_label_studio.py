"""Labelling against a real Label Studio: pairs there, votes back, and whatever may happen in between.

`tests/label_studio_server.py` makes the server. Everything else of `data/labelling` has tests of its own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import httpx
import pytest
from label_studio_server import Between, Person, Studio, chosen, environment, running, tasks_of

from data import toy
from data.labelling.ledger import Entry, Ledger
from data.labelling.server import LabelStudio
from data.sources import comparisons
from launch.label_studio import environment_folder
from rlhf.config import DataConfig
from rlhf.types import Comparison

pytestmark = pytest.mark.services
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with running(tmp_path_factory.mktemp("studio")) as started:
        yield started


def label(studio: Studio, folder: Path, *arguments: str, code: int = 0, **more: str) -> str:
    """What `rlhf label` prints."""
    command = [sys.executable, "-P", "-m", "launch.cli", "label", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(studio, **more), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


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
    )


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
    said = label(studio, tmp_path, *push)
    assert "600 pairs" in said or "were there" in said
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
        code, said = ended(process)
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

    with Between(studio.url, lose) as between:
        label(studio, tmp_path, "push", "pairs.jsonl", "--project", "lost", "--batch", "40", "--url", between.url)
    numbers = tasks_of(studio, project_of(tmp_path / "labels/lost"))
    assert len(numbers) == 200 and set(map(len, numbers.values())) == {1}


def test_what_came_twice_is_removed_unless_it_is_annotated(studio: Studio, tmp_path: Path) -> None:
    number, ledger, tasks = pushed(studio, tmp_path, "twice", 6)
    first, second, *_ = tasks
    with studio.owner as owner:  # as a push from another machine at the same time would
        owner.import_tasks(number, [ledger.entries[pair].data() for pair in (first, second)])
    again = {pair: max(numbers) for pair, numbers in tasks_of(studio, number).items() if len(numbers) == 2}
    studio.person("ann").vote(again[second], "A")
    said = label(studio, tmp_path, "push", "pairs.jsonl", "--project", "twice")
    assert "2 tasks that had come twice removed" in said
    left = tasks_of(studio, number)
    assert left[first] == [tasks[first]] and left[second] == [again[second]] and len(left) == 6
    label(studio, tmp_path, "pull", "--project", "twice")
    assert [vote["pair"] for vote in lines(ledger.directory / "votes.jsonl")] == [second]
