"""`rlhf label` against a real server: what it says, what it has pushed, and what it leaves in files."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from label_studio_server import Studio, environment, running, tasks_of

from data.labelling.ledger import Ledger
from launch.cli import app

Records = list[dict[str, Any]]


@pytest.fixture(scope="module", name="studio")
def a_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A server for the tests of a file."""
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
