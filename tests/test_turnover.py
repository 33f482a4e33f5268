"""One result makes room for the next in a stage's directory, and no kill between two system calls loses either."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import ArtifactError
from rlhf.store.artifact import INTERRUPTED, PARTIAL, PREVIOUS, Lineage, find_artifact, load_artifact, publish
from rlhf.store.turnover import clear, put_back, recover
from rlhf.store.unfinished import begin, is_unfinished

OLD = Lineage("ppo", {"seed": 0}, {}, {})
NEW = Lineage("ppo", {"seed": 1}, {}, {})
CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    """The process has ended before a system call."""


def complete(directory: Path, lineage: Lineage = OLD) -> None:
    begin(directory, lineage)
    for name in ("model", "best"):
        (directory / PARTIAL / name).mkdir()
        (directory / PARTIAL / name / "weights").write_text(lineage.fingerprint)
    (directory / "metrics.jsonl").write_text("{}\n")
    publish(directory, lineage, {"results": {}})


def interrupted(directory: Path, lineage: Lineage = OLD) -> None:
    begin(directory, lineage)
    (directory / "metrics.jsonl").write_text("{}\n")
    checkpoint = directory / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state").write_text(lineage.fingerprint)


def holds_complete(place: Path, lineage: Lineage = OLD) -> bool:
    artifact = find_artifact(place)
    if artifact is None or artifact.fingerprint != lineage.fingerprint:
        return False
    weights = [name for name in load_artifact(place).manifest["checksums"] if (place / name).read_text()]
    assert weights == ["best/weights", "model/weights"]
    return (place / "metrics.jsonl").read_text() == "{}\n"


def holds_interrupted(place: Path, lineage: Lineage = OLD) -> bool:
    state = place / "checkpoints" / "step-000001" / "state"
    return is_unfinished(place, lineage.fingerprint) and state.read_text() == lineage.fingerprint


def killed_before_call(number: int, work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do some work and end it before its n-th call that changes the disk; whether there was such a call."""
    made = 0

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            if made == number:
                raise Killed
            made += 1
            return call(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counting(getattr(os, name)))
        try:
            work()
        except Killed:
            return True
    return False


def each_kill(
    folder: Path,
    prepare: Callable[[Path], None],
    work: Callable[[Path], Any],
    check: Callable[[Path], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Kill some work before each of its system calls; after `recover` a check must hold. How many kills there were."""
    for number in range(1000):
        directory = folder / str(number)
        prepare(directory)
        if not killed_before_call(number, lambda directory=directory: work(directory), monkeypatch):  # type: ignore[misc]
            assert check(directory)
            return number
        if find_artifact(directory):
            load_artifact(directory)  # who looks before anybody has recovered finds the whole or nothing
        recover(directory)
        assert check(directory), f"killed before call {number}"
        begin(directory, NEW)  # and whoever comes next can work here
        publish(directory, NEW, {"results": {}})
        assert sorted(path.name for path in directory.glob(".*")) == []
    raise AssertionError("it never ended")


def test_a_complete_result_is_never_lost_while_it_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(directory: Path) -> bool:
        return holds_complete(directory) or holds_complete(directory / PREVIOUS)

    assert each_kill(tmp_path, complete, lambda d: begin(d, NEW), kept, monkeypatch) > 5


def test_an_interrupted_stage_is_never_lost_while_it_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(directory: Path) -> bool:
        return holds_interrupted(directory) or holds_interrupted(directory / INTERRUPTED)

    assert each_kill(tmp_path, interrupted, lambda d: begin(d, NEW), kept, monkeypatch) > 5


def test_neither_is_lost_when_a_stage_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make, holds, slot in ((complete, holds_complete, PREVIOUS), (interrupted, holds_interrupted, INTERRUPTED)):

        def prepare(directory: Path, make: Callable[[Path], None] = make) -> None:
            make(directory)
            begin(directory, NEW)
            (directory / "samples").mkdir()

        def kept(directory: Path, holds: Callable[[Path], bool] = holds, slot: str = slot) -> bool:
            return holds(directory) or holds(directory / slot)

        folder = tmp_path / slot
        assert each_kill(folder, prepare, lambda d, slot=slot: put_back(d, slot), kept, monkeypatch) > 3


def test_two_interrupted_stages_change_places_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(directory: Path) -> None:
        interrupted(directory, OLD)
        interrupted(directory, NEW)

    def kept(directory: Path) -> bool:
        places = (directory, directory / INTERRUPTED)
        return all(any(holds_interrupted(place, lineage) for place in places) for lineage in (OLD, NEW))

    assert each_kill(tmp_path, prepare, lambda d: begin(d, OLD), kept, monkeypatch) > 5


def test_a_published_result_stands_whatever_was_left_to_tidy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(directory: Path) -> None:
        complete(directory, OLD)
        begin(directory, NEW)
        for name in ("model", "best"):
            (directory / PARTIAL / name).mkdir()
            (directory / PARTIAL / name / "weights").write_text("new")
        (directory / "metrics.jsonl").write_text("{}\n")

    def kept(directory: Path) -> bool:
        return holds_complete(directory, NEW) or holds_complete(directory / PREVIOUS)

    assert each_kill(tmp_path, prepare, lambda d: publish(d, NEW, {"results": {}}), kept, monkeypatch) > 5


def test_the_recipe_before_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    interrupted(tmp_path)
    assert begin(tmp_path, NEW).slot == INTERRUPTED
    assert begin(tmp_path, OLD).resumed
    assert holds_interrupted(tmp_path)


def test_from_the_beginning_means_that(tmp_path: Path) -> None:
    interrupted(tmp_path)
    assert not begin(tmp_path, OLD, restart=True).resumed
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": 1}', "\udcff"])
def test_a_damaged_lineage_is_no_lineage(content: str, tmp_path: Path) -> None:
    begin(tmp_path, OLD)
    (tmp_path / PARTIAL / "lineage.json").write_text(content, errors="surrogateescape")
    assert not is_unfinished(tmp_path, OLD.fingerprint)
    assert not begin(tmp_path, OLD).resumed


def test_what_no_stage_wrote_is_refused_or_stays(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "model").mkdir()
    with pytest.raises(ArtifactError, match="model that no stage wrote"):
        clear(tmp_path)
    (tmp_path / "model").rmdir()
    complete(tmp_path)
    begin(tmp_path, NEW)
    publish(tmp_path, NEW, {"results": {}})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "model").exists()
