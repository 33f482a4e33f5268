"""Pushes beside one another, and batches whose answers come late or never."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from labelled import NOW, pairs_of

from data.labelling import pushing
from data.labelling.client import Away
from data.labelling.ledger import Busy, Ledger, Project


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
