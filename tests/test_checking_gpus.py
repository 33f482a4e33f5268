"""Checks before a run: a node's GPUs and its memory, against what the run's processes need."""

from __future__ import annotations

from pathlib import Path

import pytest
from findings import levels, one

from launch.checking import gpus, memory
from launch.checking.gpus import Gpus
from launch.checking.memory import GIB, MIB, Memory

SMI = """0, NVIDIA H100 80GB HBM3, 570.86.15, 81559, 4, 0, Not Active, Not Active
1, NVIDIA H100 80GB HBM3, 570.86.15, 81559, 40231, 3, Active, Not Active
"""
PLENTY = Memory(total=64 * GIB, available=60 * GIB, limit=None, used=0, shared=8 * GIB, locked=None)
NO_GPUS = Gpus(cards=(), visible=0)


def test_cards_are_read_from_nvidia_smi() -> None:
    first, second = gpus.parse(SMI)
    assert (first.index, first.driver, first.memory, first.uncorrected, first.slowed) == (0, "570.86.15", 81559, 0, ())
    assert (second.used, second.uncorrected, second.slowed) == (40231, 3, ("heat",))
    assert gpus.parse("0, Tesla T4, 570.1, 15360, [N/A]\n")[0].used == 0


def test_what_is_wrong_with_a_card_is_named() -> None:
    found = gpus.judge_one(Gpus(cards=gpus.parse(SMI), visible=2), 2, "2.13.0", "12.8")
    assert levels(found) == ["failure", "warning", "warning"] and all("GPU 1" in each.what for each in found)


@pytest.mark.parametrize(
    ("driver", "cuda", "fine"),
    [("570.86", "12.8", True), ("525.60.12", "12.1", False), ("570.86", "13.0", False), ("580.65.06", "13.0", True)],
)
def test_driver_against_cuda(driver: str, cuda: str, fine: bool) -> None:
    assert (gpus.too_old(driver, cuda) is None) == fine


def test_gpus_and_a_torch_without_cuda_do_not_go_together() -> None:
    found = gpus.judge_one(Gpus(cards=gpus.parse(SMI)[:1], visible=1), 1, "2.13.0+cpu", None)
    assert "built without CUDA" in one(found).what


def test_more_processes_than_gpus() -> None:
    found = gpus.judge_one(Gpus(cards=gpus.parse(SMI)[:1], visible=1), 2, "2.13.0", "12.8")
    assert one(found).line == "2 processes for 1 GPU; use --processes 1, as a run would parallelism.processes"


def test_a_driver_that_does_not_answer_is_a_failure() -> None:
    node = Gpus(cards=(), visible=0, silent="Unable to determine the device handle: GPU is lost")
    assert "GPU is lost" in one(gpus.judge_one(node, 1, "2.13.0", "12.8")).what


def test_a_node_with_other_cards_is_named() -> None:
    two, none = Gpus(cards=gpus.parse(SMI), visible=2), NO_GPUS
    assert one(gpus.judge_all({"a": two, "b": two, "c": none})).what.startswith("c: none")
    assert gpus.judge_all({"a": two, "b": two}) == []


def test_limits_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    (tmp_path / "job" / "step").mkdir(parents=True)
    for folder, limit in ((tmp_path / "job" / "step", "max"), (tmp_path / "job", str(4 * GIB))):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text(str(GIB))
    assert memory.narrowest(tmp_path / "cgroup", tmp_path) == (4 * GIB, GIB)


def test_limits_of_version_one(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("5:cpu:/other\n4:hugetlb,memory:/job\n")
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text(str(2 * GIB))
    (tmp_path / "memory" / "job" / "memory.usage_in_bytes").write_text("0")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("0")
    assert memory.narrowest(tmp_path / "cgroup", tmp_path) == (2 * GIB, 0)


def test_a_limit_that_is_too_narrow() -> None:
    node = PLENTY.model_copy(update={"limit": 8 * GIB, "used": GIB})
    found = memory.judge(node, NO_GPUS, 2, 4.0 * GIB, fast=False)
    assert one(found).what == "2 processes need 8.0 GiB, and 7.0 GiB its control group leaves"
    assert levels(memory.judge(node, NO_GPUS, 1, 4.0 * GIB, fast=False)) == ["ok"]


def test_a_process_that_no_gpu_holds() -> None:
    node = Gpus(cards=gpus.parse(SMI), visible=2)
    assert levels(memory.judge(PLENTY, node, 2, 200.0 * GIB, fast=False)) == ["failure"]
    assert levels(memory.judge(PLENTY, node, 2, 20.0 * GIB, fast=False)) == ["ok"]


@pytest.mark.parametrize(("shared", "processes", "level"), [(64 * MIB, 2, "warning"), (64 * MIB, 1, "ok")])
def test_shared_memory(shared: int, processes: int, level: str) -> None:
    node = PLENTY.model_copy(update={"shared": shared})
    assert levels(memory.judge(node, NO_GPUS, processes, None, fast=False)) == [level]


def test_the_shared_memory_of_a_container_is_too_small_for_nccl() -> None:
    node = PLENTY.model_copy(update={"shared": 64 * MIB})
    found = memory.judge(node, Gpus(cards=gpus.parse(SMI), visible=2), 2, None, fast=False)
    assert one(found).level == "failure" and "--shm-size" in one(found).remedy


def test_infiniband_wants_locked_pages() -> None:
    node = PLENTY.model_copy(update={"locked": 64 * 1024})
    assert levels(memory.judge(node, NO_GPUS, 2, None, fast=True)) == ["warning"]
