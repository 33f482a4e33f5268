"""Each check before a run: facts in, finding out."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.checking import collectives, folders, gpus, memory, network, versions
from launch.checking.finding import Finding, by_node, failure, listed, ok, warning, worst
from launch.checking.gpus import Gpus
from launch.checking.memory import GIB, MIB, Memory
from launch.checking.network import Interfaces, Seen
from launch.checking.versions import Versions
from rlhf.recipe import load_recipe
from stages.collectives import rounds

SMI = """0, NVIDIA H100 80GB HBM3, 570.86.15, 81559, 4, 0, Not Active, Not Active
1, NVIDIA H100 80GB HBM3, 570.86.15, 81559, 40231, 3, Active, Not Active
"""
GOOD = Versions(python="3.11.7", commit="abc", packages={"rlhf": "0.1.0", "torch": "2.13.0"}, broken=(), cuda="12.8")
PLENTY = Memory(total=64 * GIB, available=60 * GIB, limit=None, used=0, shared=8 * GIB, locked=None)
NO_GPUS = Gpus(cards=(), visible=0)
WIRED = Interfaces(
    name="eth0", mtu=1500, asked="eth0", others=("eth0",), host_resolves=None, infiniband=(), infiniband_down=()
)


def levels(found: list[Finding]) -> list[str]:
    return [each.level for each in found]


def one(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


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


def test_an_interface_that_is_not_there() -> None:
    node = WIRED.model_copy(update={"asked": "ib0"})
    assert one(network.judge_one(node, "10.0.0.1")).line.endswith("there is eth0; export GLOO_SOCKET_IFNAME=eth0")


def test_a_name_that_leads_to_the_node_alone() -> None:
    node = WIRED.model_copy(update={"asked": None, "host_resolves": "127.0.1.1"})
    assert "127.0.1.1" in one(network.judge_one(node, "10.0.0.1")).what
    assert network.judge_one(node.model_copy(update={"host_resolves": "10.0.0.1"}), "10.0.0.1") == []


def test_packets_of_two_sizes() -> None:
    found = network.judge_interfaces({"a": WIRED, "b": WIRED.model_copy(update={"mtu": 9000})})
    assert one(found).what.startswith("packets of several sizes (MTU): a 1500, b 9000")


def seen_by(
    names: str, ahead: dict[str, float], shut: set[tuple[str, str]] = frozenset()
) -> dict[str, dict[str, Seen]]:  # type: ignore[assignment]
    """What nodes see of each other whose clocks are ahead by so much."""
    return {
        i: {
            j: Seen(error="10.0.0.9: no answer")
            if (i, j) in shut
            else Seen(seconds=1e-4, ahead=ahead.get(j, 0) - ahead.get(i, 0))
            for j in names
            if j != i
        }
        for i in names
    }


def test_clocks_that_agree() -> None:
    assert levels(network.judge_clocks(list("abc"), seen_by("abc", {"a": 0.01}))) == ["ok"]


@pytest.mark.parametrize(("seconds", "level"), [(3.0, "warning"), (-20.0, "failure")])
def test_of_several_clocks_the_odd_one_is_named_also_the_first(seconds: float, level: str) -> None:
    found = one(network.judge_clocks(list("abc"), seen_by("abc", {"a": seconds})))
    where = "ahead of" if seconds > 0 else "behind"
    assert (found.level, found.what) == (level, f"the clock of a is {abs(seconds):.1f} s {where} most")


def test_clocks_are_known_from_either_side() -> None:
    found = network.judge_clocks(["a", "b"], seen_by("ab", {"b": 300.0}, {("a", "b")}))
    assert one(found).what == "the clock of b is 300.0 s ahead of that of a"


def test_a_node_that_nobody_reaches_is_one_line() -> None:
    found = network.judge_ports(seen_by("abcd", {}, {("a", "c"), ("b", "c"), ("d", "c")}))
    assert one(found).what.startswith("no other node reaches c ")


def test_many_closed_pairs_are_counted() -> None:
    shut = {(i, j) for i, j in itertools.permutations("abcdef", 2) if i < j and (i, j) != ("a", "f")}
    found = network.judge_ports(seen_by("abcdef", {}, shut))
    assert len(found) <= network.SHOWN + 4 and found[-1].what.endswith("more pairs do not reach each other")


FOLDER = folders.Folder(place="/runs")


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


@pytest.mark.parametrize("members", range(1, 10))
def test_every_pair_meets_once_and_nobody_has_two_partners(members: int) -> None:
    schedule = rounds(members)
    met = [pair for together in schedule for pair in together]
    assert sorted(met) == list(itertools.combinations(range(members), 2))
    for together in schedule:
        assert len(busy := [rank for pair in together for rank in pair]) == len(set(busy))
    assert members == 1 or len(schedule) == members - 1 + members % 2


def measured(rates: dict[tuple[int, int], float], nodes: list[int]) -> dict[str, object]:
    pairs = [{"between": list(pair), "seconds": 1e-4, "bandwidth": rate, "size": 2**20} for pair, rate in rates.items()]
    total = {"seconds": 1e-4, "bandwidth": 1e9, "size": 2**20}
    return {"backend": "gloo", "nodes": nodes, "devices": ["cpu"] * len(nodes), "all_reduce": total, "pairs": pairs}


def test_the_slow_link_of_several_is_named() -> None:
    rates = {pair: 1e9 for pair in itertools.combinations(range(4), 2)} | {(1, 3): 3e8}
    found = one(collectives.judge(measured(rates, [0, 1, 2, 3]), {n: f"n{n}" for n in range(4)}))
    assert found.level == "warning" and found.what.startswith("n1 and n3: 300.0 MB/s") and "1,000.0 MB/s" in found.what


def test_a_node_all_of_whose_links_are_slow_is_named_in_each() -> None:
    rates = {(i, j): 5e7 if j == 4 else 1e9 for i, j in itertools.combinations(range(5), 2)}
    found = collectives.judge(measured(rates, [0, 1, 2, 3, 4]), {n: f"n{n}" for n in range(5)})
    assert levels(found) == ["failure"] * 4 and all("n4" in each.what for each in found)


def test_a_single_link_is_held_against_gigabit_ethernet() -> None:
    names = {0: "a", 1: "b"}
    assert levels(collectives.judge(measured({(0, 1): 1.1e8}, [0, 1]), names)) == ["ok"]
    assert levels(collectives.judge(measured({(0, 1): 1.2e7}, [0, 1]), names)) == ["warning"]
    assert levels(collectives.judge(measured({(0, 1): 1e6}, [0, 1]), names)) == ["failure"]


def test_a_slow_pair_within_a_node_is_named_by_its_processes() -> None:
    rates = {pair: 2e11 for pair in itertools.combinations(range(4), 2)} | {(2, 3): 1e10}
    found = one(collectives.judge(measured(rates, [0, 0, 0, 0]), {0: "a"}))
    assert found.level == "failure" and found.what.startswith("processes 2 and 3 of a: 10.00 GB/s")
