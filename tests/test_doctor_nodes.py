"""`rlhf doctor` on two nodes: each thing that is wrong with one of them in one line, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from doctors import Surgery, Told, with_faults
from network import Network, network  # noqa: F401  # the fixture `net`

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

WRONG = {
    "slow_link": (
        "collectives",
        "warning",
        r"node-1 and node-2: \d+\.\d MB/s, [\d.]+ ms, less than half of gigabit Ethernet",
    ),
    "read_only": ("folder", "failure", r"node-2 cannot write in \S+: Read-only file system"),
    "not_shared": (
        "folder",
        "failure",
        r"node-2 and node-1 do not see in \S+ what the other writes there: it is not shared",
    ),
    "other_version": ("versions", "failure", r"node-2: transformers is 5\.17\.0 there and \S+ on the first node"),
    "closed_ports": ("network", "failure", r"node-1 does not reach node-2 but at the rendezvous: 10\.77\.0\.2: .*"),
    "wrong_clock": ("clocks", "failure", r"the clock of node-2 is (299|300)\.\d s ahead of that of node-1"),
}


def told_of(net: Network, folder: Path, *faults: str) -> Told:
    with with_faults(Surgery(net, folder), *faults) as surgery:
        return surgery.examine()


def test_healthy_nodes(net: Network, tmp_path: Path) -> None:
    told = told_of(net, tmp_path)
    assert told.amiss == [] and told.codes == [0, 0], (told.verdict, told.errors)
    assert {"nodes", "network", "clocks", "folder", "collectives"} <= {
        each["check"] for each in told.verdict["findings"]
    }
    assert len(told.verdict["collectives"]["pairs"]) == 1 and told.verdict["collectives"]["all_reduce"]["bandwidth"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "faults",
    [("slow_link", "read_only", "other_version", "wrong_clock"), ("closed_ports", "not_shared")],
    ids=" ".join,
)
def test_each_thing_that_is_wrong_is_named_in_a_line(faults: tuple[str, ...], net: Network, tmp_path: Path) -> None:
    told = told_of(net, tmp_path, *faults)
    amiss = told.amiss
    for fault in faults:
        check, level, pattern = WRONG[fault]
        named = [each for each in amiss if each[:2] == (check, level) and re.fullmatch(pattern, each[2])]
        assert len(named) == 1, (fault, told.verdict, told.errors)
        amiss.remove(named[0])
    # Where nodes do not reach each other, collectives would only wait.
    assert [check for check, _, _ in amiss] == (["collectives"] if "closed_ports" in faults else []), amiss
    assert told.codes == [1, 1]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".rlhf")] == []


def test_who_does_not_get_through_is_missing_here_and_told_there(net: Network, tmp_path: Path) -> None:
    with with_faults(Surgery(net, tmp_path), "closed_rendezvous") as surgery:
        told = surgery.examine(seconds=6)
    assert told.codes == [1, 1]
    assert ("nodes", "failure", "1 of 2 came within 6 s (node-1); missing: node rank 1") in told.amiss
    assert len(lines := told.errors[1].strip().splitlines()) == 1, lines
    assert re.search(r"node-2 does not reach 10\.77\.0\.1:29400 within 6 s \(no answer", lines[0])
