"""Checks before a run: interfaces, clocks, ports and the speed of links between nodes."""

from __future__ import annotations

import itertools

import pytest
from findings import levels, one

from launch.checking import collectives, network
from launch.checking.network import Interfaces, Seen
from stages.collectives import rounds

WIRED = Interfaces(
    name="eth0", mtu=1500, asked="eth0", others=("eth0",), host_resolves=None, infiniband=(), infiniband_down=()
)


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
