"""Checks before a run: what a finding says, and versions and a folder that must be the same on every node."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from findings import levels, one

from launch.checking import folders, versions
from launch.checking.finding import by_node, failure, listed, ok, warning, worst
from launch.checking.versions import Versions
from rlhf.recipe import load_recipe

GOOD = Versions(python="3.11.7", commit="abc", packages={"rlhf": "0.1.0", "torch": "2.13.0"}, broken=(), cuda="12.8")
FOLDER = folders.Folder(place="/runs")


def test_a_finding_is_one_line_whatever_was_said() -> None:
    assert failure("gpus", "nvidia-smi:\nno\tdevice", "reboot").line == "nvidia-smi: no device; reboot"
    assert failure("nodes", "a\x1b[2J", "").line == "a [2J"


def test_what_nodes_find_alike_is_told_once() -> None:
    found = by_node(
        {"a": [ok("gpus", "8")], "b": [ok("gpus", "8")], "c": [ok("gpus", "8"), warning("gpus", "hot", "")]}
    )
    assert [each.what for each in found] == ["8", "c: hot"]


def test_many_names_are_not_all_listed() -> None:
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert listed([str(n) for n in range(20)], shown=2) == "0, 1 and 18 more"


def test_the_worst_level_counts() -> None:
    assert worst([ok("a", ""), failure("b", "", ""), warning("c", "", "")]) == "failure" and worst([]) == "ok"


@pytest.mark.parametrize(
    ("owner", "asked", "said"),
    [
        ("rlhf", "torch>=2.14", "torch 2.13.0 is installed, and rlhf 0.1.0 needs torch>=2.14"),
        ("rlhf", "torch>=2.11", None),
        ("rlhf", "absent>=1", "absent is not installed, and rlhf needs absent>=1"),
        ("rlhf", "absent>=1; extra == 'label'", None),
        ("rlhf", "torch<2; extra == 'label'", "torch 2.13.0 is installed, and rlhf 0.1.0 needs torch<2"),
        ("torchvision", "torch==2.12.0", "torch 2.13.0 is installed, and torchvision 0.27.0 needs torch==2.12.0"),
        ("torchvision", "torch==2.12.0; extra == 'old'", None),
        ("torchvision", "torch==2.12.0; sys_platform == 'win32'", None),
        ("torchvision", "absent>=1", None),
        ("torchvision", "torch (odd", None),
    ],
)
def test_requirements_between_packages(owner: str, asked: str, said: str | None) -> None:
    packages = {"rlhf": "0.1.0", "torch": "2.13.0", "torchvision": "0.27.0"}
    assert list(versions.broken([(owner, asked)], packages)) == ([said] if said else [])


def test_a_local_build_meets_its_version() -> None:
    assert list(versions.broken([("rlhf", "torch==2.13.0")], {"torch": "2.13.0+cpu"})) == []


@pytest.mark.parametrize(
    ("line", "cuda"),
    [("cuda: Optional[str] = '12.8'", "12.8"), ("cuda = '13.0'", "13.0"), ("cuda: Optional[str] = None", None)],
)
def test_the_cuda_of_torch(line: str, cuda: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version.py").write_text(f"__all__ = ['cuda']\n{line}\nhip = '1'\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert versions.cuda_of_torch() == cuda


def test_this_environment_keeps_to_its_ranges() -> None:
    here = versions.look()
    assert here.broken == () and here.packages["torch"].startswith("2.") and here.cuda is None


def test_a_node_that_differs_is_named_with_both_versions() -> None:
    other = GOOD.model_copy(update={"packages": {**GOOD.packages, "torch": "2.12.0", "rich": "15"}})
    found = versions.judge_all({"a": GOOD, "b": GOOD, "c": other})
    assert [(each.level, each.what) for each in found] == [
        ("warning", "c: rich is 15 there and none on the others"),
        ("failure", "c: torch is 2.12.0 there and 2.13.0 on the others"),
    ]


def test_another_commit_is_a_failure() -> None:
    assert one(versions.judge_all({"a": GOOD, "b": GOOD.model_copy(update={"commit": "def"})})).level == "failure"


def test_deepspeed_wants_a_compiler_and_no_lock_of_a_killed_build() -> None:
    node = GOOD.model_copy(update={"tools": ("ninja",), "locks": ("/x/lock",)})
    assert versions.judge_one(node, load_recipe("demo")) == []
    found = versions.judge_one(node, load_recipe("demo", ["parallelism.strategy=zero2"]))
    assert levels(found) == ["failure", "failure"] and "rm /x/lock" in found[1].line


def test_abandoned_locks_are_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name, age in (("old", 3600), ("new", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        os.utime(tmp_path / name / "lock", (lock := (tmp_path / name / "lock").stat().st_mtime - age, lock))
    assert versions.abandoned_locks() == [str(tmp_path / "old" / "lock")]


def test_versions_other_than_tested_are_told_and_no_warning() -> None:
    told = versions.summary(GOOD, {"torch": "2.12.0"})
    assert told.level == "ok" and "torch 2.13.0 (tested: 2.12.0)" in told.what


def test_one_folder_of_all() -> None:
    assert levels(folders.judge({"a": FOLDER, "b": FOLDER}, {0: "a", 1: "b"})) == ["ok"]


@pytest.mark.parametrize(
    ("of_second", "said"),
    [
        ({"error": "Permission denied"}, "b cannot write in /runs: Permission denied"),
        ({"place": "/"}, "b: /runs is not there, and / would be written"),
        ({"unseen": (0,)}, "b and a do not see in /runs what the other writes there: it is not shared"),
        ({"locks": False}, "b: files in /runs cannot be locked"),
        ({"torn": 2, "read": 50}, "b: 2 of 50 readings in /runs found no whole file"),
    ],
)
def test_a_folder_that_is_not_what_it_should_be(of_second: dict[str, object], said: str) -> None:
    found = folders.judge({"a": FOLDER, "b": FOLDER.model_copy(update=of_second)}, {0: "a", 1: "b"})
    assert one(found).what.startswith(said) and one(found).level == "failure"
