"""Labelling against a real Label Studio: what people see, votes as they are cast, the report, a server of one's own.

`tests/label_studio_server.py` makes the server. Everything else of `data/labelling` has tests of its own.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from label_commands import (
    a_studio,  # noqa: F401  # the fixture `studio`
    begun,
    ended,
    hear_interrupts,
    label,
    lines,
    pushed,
    wait_for,
)
from label_studio_server import Studio, template

from data.labelling.client import official
from launch.label_studio import is_free
from launch.local import free_port

pytestmark = pytest.mark.services


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
