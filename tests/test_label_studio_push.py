"""Pairs pushed to a real Label Studio come there once each, whoever is killed and whatever gets lost."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from threading import Timer
from unittest import mock

import pytest
from label_commands import (
    a_studio,  # noqa: F401  # the fixture `studio`
    begun,
    ended,
    label,
    lines,
    project_of,
    pushed,
    wait_for,
    write_pairs,
)
from label_studio_server import Between, Studio, tasks_of

from data.labelling.ledger import Ledger

pytestmark = pytest.mark.services


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
