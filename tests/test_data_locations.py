"""Files, directories, saved data sets and the hub's cache: what is read of them, or one line why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from data.locations import content_hash, not_read
from rlhf.errors import DataError
from tests.test_data_records import fields, read, refused

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    assert "no such file or directory; relative paths start at data.directory" in refused("nix.jsonl", str(tmp_path))
    assert "a data set on the hub needs its commit: org/name@COMMIT" in refused("org/name")
    assert "COMMIT" not in refused("folder/file.jsonl")
    assert "no such file" in refused("a\nb\x00.jsonl", str(tmp_path))
    assert "cannot be read" in refused("x" * 5000)


def test_a_directory_is_its_data_files_by_name(tmp_path: Path) -> None:
    assert "without a data file" in refused(tmp_path)
    (tmp_path / "b.jsonl").write_text('{"n": 2}')
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "c.json").write_text('[{"n": 3}]')
    (tmp_path / "a.csv").write_text("n\n1\n")
    for name in ("README.md", ".hidden.jsonl", "c.ndjson", "dataset_infos.json"):
        (tmp_path / name).write_text("{")
    assert [record["n"] for record in fields(tmp_path)] == ["1", 2, 3]
    assert not_read(str(tmp_path), None) == ["README.md", "c.ndjson", "dataset_infos.json"]
    assert not_read("b.jsonl", str(tmp_path)) == not_read("nix", str(tmp_path)) == []


def test_a_directory_is_read_with_its_links_and_once(tmp_path: Path) -> None:
    votes, elsewhere = tmp_path / "votes", tmp_path / "elsewhere"
    (votes / "run").mkdir(parents=True)
    (votes / "_log").mkdir()
    elsewhere.mkdir()
    for number, path in enumerate((votes / "_b.jsonl", elsewhere / "c.jsonl", votes / "run" / "d.jsonl")):
        path.write_text(json.dumps({"n": number}))
    (votes / "a\n.txt").write_text("")
    (votes / "link").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(votes)
    (votes / "latest").symlink_to(votes / "run")
    (votes / "broken.jsonl").symlink_to(votes / "nix.jsonl")
    assert [record["n"] for record in fields(votes)] == [0, 1, 2]
    assert not_read("votes", str(tmp_path)) == ["_log/", "a\\n.txt", "broken.jsonl", "latest/", "link/loop/"]
    before = content_hash("votes", str(tmp_path))
    (elsewhere / "c.jsonl").write_text("{}")
    assert content_hash("votes", str(tmp_path)) != before


def test_a_saved_data_set_is_read_in_its_own_order(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{i}"}], "n": i} for i in range(100)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved", num_shards=12)
    assert fields(tmp_path / "saved") == rows
    shards = sorted(path.name for path in (tmp_path / "saved").glob("*.arrow"))
    assert len(shards) == 12
    (tmp_path / "saved" / shards[3]).unlink()
    assert "missing, though state.json names it" in refused(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    assert "not what save_to_disk writes" in refused(tmp_path / "saved")


def test_of_several_splits_one_must_be_named(tmp_path: Path) -> None:
    part = Dataset.from_list([{"prompt": "p"}])
    DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "saved")
    assert "holds several splits; give saved/train or saved/test" in refused("saved", str(tmp_path))
    assert fields("saved/train", str(tmp_path)) == [{"prompt": "p"}]
    (tmp_path / "saved" / "dataset_dict.json").write_text("[")
    assert "not what save_to_disk writes" in refused("saved", str(tmp_path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one data set, laid out as huggingface_hub does: links to blobs below snapshots/COMMIT."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "datasets--org--name"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    for number, name in enumerate(("data/train-0.jsonl", "data/test-0.jsonl", "other/x.json", "README.md")):
        blob = repository / "blobs" / f"{number:064x}"
        blob.write_text(f'[{{"n": {number}}}]' if name.endswith(".json") else f'{{"n": {number}}}\n')
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def test_the_hub_is_read_at_a_commit(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = f"org/name@{COMMIT}"
    assert [record["n"] for record in fields(whole)] == [1, 0, 2]
    assert fields(f"{whole}:data/train-*") == [{"n": 0}]
    assert fields(f"{whole}:data/train-0.jsonl") == [{"n": 0}]
    assert [record["n"] for record in fields(f"{whole}:data")] == [1, 0]
    assert read(f"{whole}:data/train-*")[0].place == f"{whole}:data/train-0.jsonl:1"
    assert "no data file matches missing" in refused(f"{whole}:missing")
    for revision in ("main", "", "v1.0", COMMIT[:10]):
        assert "is no commit" in refused(f"org/name@{revision}")
    assert "not in the hub's cache" in refused(f"org/name@{COMMIT[::-1]}")
    assert "not in the hub's cache" in refused(f"other/name@{COMMIT}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / f"org/name@{COMMIT}").write_text("{}")
    assert "unknown kind" in refused(whole)  # a local path wins


def test_content_hashes_follow_the_content(hub: Path, tmp_path: Path) -> None:
    file = tmp_path / "files" / "a.jsonl"
    file.parent.mkdir()
    file.write_text('{"n": 1}')

    def hashes() -> tuple[str, str]:
        return content_hash("a.jsonl", str(file.parent)), content_hash("files", str(tmp_path))

    before = hashes()
    shutil.copytree(tmp_path / "files", tmp_path / "elsewhere" / "files")
    assert (
        content_hash("a.jsonl", str(tmp_path / "elsewhere/files")),
        content_hash("files", str(tmp_path / "elsewhere")),
    ) == before
    file.write_text('{"n": 22}')
    assert not set(hashes()) & set(before)
    changed = hashes()
    file.rename(file.with_name("b.jsonl"))
    assert content_hash("files", str(tmp_path)) != changed[1]
    of_hub = {content_hash(f"org/name@{COMMIT}{pattern}", None) for pattern in ("", ":data", ":other")}
    assert len(of_hub) == 3
    with pytest.raises(DataError, match="no such file"):
        content_hash("nix.jsonl", str(tmp_path))
    with pytest.raises(DataError, match="is no commit"):
        content_hash("org/name@main", None)
