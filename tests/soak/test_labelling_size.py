"""Ten thousand pairs there and twenty thousand votes back, and what that takes: `make soak ARGS="-k labelling -s"`.

People cannot be hurried: their votes are written into the server's own table, as its interface would write them.
"""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
from label_studio_server import Studio, chosen, environment, running, tasks_of

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

PAIRS, MOST_BYTES = 10_000, 500 << 20
WORDS = ("the", "of", "a", "sun", "moon", "red", "because", "answer", "question", "more", "words", "here")


def measured(studio: Studio, folder: Path, what: str, *arguments: str) -> dict[str, object]:
    """Run a command; say its time and the most memory that it and the server held."""
    assert studio.server.process is not None
    server = psutil.Process(studio.server.process.pid)
    command = [sys.executable, "-P", "-m", "launch.cli", "label", *arguments, "--json"]
    started, most, most_of_server = time.monotonic(), 0, 0
    process = subprocess.Popen(command, cwd=folder, env=environment(studio), stdout=subprocess.PIPE, text=True)
    said: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda out: said.append(out.read()), args=(process.stdout,))
    reader.start()
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            most = max(most, watched.memory_info().rss)
            most_of_server = max(most_of_server, server.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    reader.join()
    process.stdout.close()
    assert process.wait() == 0
    seconds = time.monotonic() - started
    print(f"\n{what}: {seconds:.1f} s, {most >> 20} MB, the server {most_of_server >> 20} MB")
    assert most < MOST_BYTES
    found: dict[str, object] = json.loads(said[0])
    return found


def write_pairs(path: Path) -> None:
    """About 1.8 kB each."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(words))

    with path.open("w") as file:
        for number in range(PAIRS):
            responses = [f"{number} {text(120)}", f"{number} {text(120)}"]
            file.write(json.dumps({"prompt": f"{number} {text(80)}", "responses": responses}) + "\n")


def vote(studio: Studio, project: int) -> int:
    """Two people vote on every task; how many votes."""
    people = [studio.person(name).number for name in ("ann", "bob")]
    draw, now = random.Random(1), "2026-11-28 12:00:00.000000"
    rows = [
        (json.dumps([chosen(draw.choice("AB"))]), now, now, task, 5.5, person, project, person, uuid.uuid4().hex)
        for numbers in tasks_of(studio, project).values()
        for task in numbers
        for person in people
    ]
    columns = "result, created_at, updated_at, task_id, lead_time, completed_by_id, project_id, updated_by_id"
    columns += ", unique_id, was_cancelled, ground_truth, result_count, prediction"
    with sqlite3.connect(studio.server.directory / "label_studio.sqlite3", timeout=60) as database:
        database.executemany(
            f"insert into task_completion ({columns}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 1, '{{}}')",
            rows,
        )
    database.close()
    return len(rows)


def test_ten_thousand_pairs_stay_in_bounds(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl")
    title = ("--project", "ten thousand")
    with running(tmp_path) as studio:
        said = measured(studio, tmp_path, "push", "push", "pairs.jsonl", *title, "--batch", "1000")
        assert said["pushed"] == PAIRS
        assert measured(studio, tmp_path, "push again", "push", "pairs.jsonl", *title)["there"] == PAIRS
        votes = vote(studio, int(str(said["project"])))
        found = measured(studio, tmp_path, "pull", "pull", *title)
        assert found["valid"] == found["votes"] == votes == 2 * PAIRS and found["changed"] == PAIRS
        assert measured(studio, tmp_path, "pull again", "pull", *title)["changed"] == 0
        report = measured(studio, tmp_path, "report", "report", *title)
        assert abs(float(str(report["alpha"]))) < 0.05  # they voted by a coin
        with (tmp_path / "labels" / "ten-thousand" / "votes.jsonl").open() as file:
            assert sum(1 for _ in file) == votes
