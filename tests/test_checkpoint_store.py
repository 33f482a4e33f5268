"""The store of checkpoints: whole or not at all, verified, the newest valid one, what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import ArtifactError
from rlhf.store.artifact import file_digest
from rlhf.store.checkpoint import Checkpoint, CheckpointStore, Retention
from rlhf.store.unfinished import cut_back, hold


def store_in(folder: Path, fingerprint: str = "own", **retention: Any) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", fingerprint, Retention(**{"last": 10, **retention}))


def write(store: CheckpointStore, step: int, score: float | None = None) -> Checkpoint:
    partial = store.begin(step)
    (partial / "policy").mkdir()
    (partial / "policy" / "state.pt").write_bytes(bytes([step]) * 1000)
    return store.commit(step, {"score": score, "last": False})


def steps(store: CheckpointStore) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in store.directory.glob("step-??????"))


def newest(store: CheckpointStore) -> tuple[int | None, list[str]]:
    said: list[str] = []
    found = store.newest(said.append)
    return (found.step if found else None), said


def test_the_newest_is_found_with_what_was_recorded(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for step in (1, 2, 10):
        write(store, step, score=float(step))
    found = store.newest(print)
    assert found is not None
    assert (found.step, found.score) == (10, 10.0)
    assert (found.directory / "policy" / "state.pt").read_bytes() == bytes([10]) * 1000
    assert not list(store.directory.glob(".*"))


def test_what_was_not_committed_is_never_found(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    write(store, 1)
    (store.begin(2) / "state.pt").write_bytes(b"half")
    assert newest(store) == (1, [])
    write(store, 3)
    assert not list(store.directory.glob(".*"))  # the half is gone with the next one


@pytest.mark.parametrize("name", ["policy/state.pt", "checkpoint.json", "checksums.json"])
def test_a_flipped_byte_or_a_missing_file_is_named_and_the_older_one_used(name: str, tmp_path: Path) -> None:
    for damage in ("flip", "remove", "cut", "empty"):
        store = store_in(tmp_path / damage)
        write(store, 1)
        path = write(store, 2).directory / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "remove":
            path.unlink()
        else:
            path.write_bytes({"flip": bytes(content), "cut": content[: len(content) // 2], "empty": b""}[damage])
        step, (line,) = newest(store)
        assert step == 1, damage
        assert str(store.directory / "step-000002") in line
        assert any(word in line for word in ("damaged", "missing", "cannot be read")), line
        assert "\n" not in line
        assert newest(store) == (1, [])  # said once: it has been set aside
        write(store, 2)
        assert newest(store) == (2, [])


def test_every_single_flipped_byte_is_noticed(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    checkpoint = write(store, 1)
    for path in (checkpoint.directory / "checkpoint.json", checkpoint.directory / "policy" / "state.pt"):
        whole = path.read_bytes()
        for index in range(0, len(whole), 7):
            path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x10]) + whole[index + 1 :])
            with pytest.raises(Exception, match=r"damaged|cannot be read"):
                store.verified(checkpoint.directory)
        path.write_bytes(whole)
    assert store.verified(checkpoint.directory).step == 1


def test_a_damaged_older_one_stands_in_nobodys_way(tmp_path: Path) -> None:
    store = store_in(tmp_path, last=2)
    account = write(store, 1, score=5.0).directory / "checkpoint.json"
    account.write_text(account.read_text().replace('"score"', '"scorf"'))
    write(store, 2, score=1.0)
    assert newest(store) == (2, [])
    assert store.best_score() == 1.0
    for step in (3, 4):
        write(store, step)
    assert steps(store) == [1, 2, 3, 4]  # 2 is the best that is known; what cannot be read is not removed


def test_a_file_that_cannot_be_read_is_as_good_as_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> str:
        if path.parent.parent.name == "step-000002" and path.name == "state.pt":
            raise OSError(5, "Input/output error")
        return file_digest(path)

    store = store_in(tmp_path)
    write(store, 1)
    write(store, 2)
    monkeypatch.setattr("rlhf.store.checkpoint.file_digest", fails)
    step, (line,) = newest(store)
    assert step == 1
    assert "step-000002/policy/state.pt: cannot be read (Input/output error)" in line


def test_that_of_another_stage_is_not_its_own(tmp_path: Path) -> None:
    write(store_in(tmp_path, "other"), 5)
    step, (line,) = newest(store_in(tmp_path))
    assert step is None
    assert "of another recipe" in line


def test_that_of_another_format_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.store.checkpoint.FORMAT", 0)
    write(store_in(tmp_path), 5)
    monkeypatch.undo()
    step, (line,) = newest(store_in(tmp_path))
    assert step is None
    assert "checkpoint format 0" in line


def test_the_last_ones_the_milestones_and_the_best_are_kept(tmp_path: Path) -> None:
    store = store_in(tmp_path, last=2, every=4)
    scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: None, 5: 0.5, 6: 0.9, 7: None, 8: None, 9: 0.2}
    for step, score in scores.items():
        write(store, step, score)
    assert steps(store) == [2, 4, 8, 9]  # the first of two equal scores: the other was no better when it came
    assert store.best_score() == 0.9
    store.finish()
    assert steps(store) == [2, 4, 8]


def test_without_best_or_milestones_nothing_stays_behind_a_complete_stage(tmp_path: Path) -> None:
    store = store_in(tmp_path, last=3, best=False)
    for step in range(1, 6):
        write(store, step, score=float(-step))
    assert steps(store) == [3, 4, 5]
    store.finish()
    assert not store.directory.exists()


def test_figures_and_samples_are_cut_back(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step}) + "\n" for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 6, "torn')
    (tmp_path / "samples").mkdir()
    for name in ("held-out-000002.parquet", "held-out-000004.parquet", ".held-out-000004.parquet.partial"):
        (tmp_path / "samples" / name).write_text("")
    said: list[str] = []
    cut_back(tmp_path, 3, len("".join(lines[:3])), said.append)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:3])
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["held-out-000002.parquet"]
    assert said == []
    cut_back(tmp_path, 3, 10_000, said.append)
    assert "some figures are missing" in said[0]
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2]) + '{"step": 3, "torn')
    cut_back(tmp_path, 3, len("".join(lines[:3])), said.append)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:2])


def test_a_directory_is_held_by_one(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(ArtifactError, match="in use by another"):
        hold(tmp_path)
    hold(tmp_path).close()
